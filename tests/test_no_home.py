"""Where nothing can be kept: data that is read-only, and a home that cannot be written, does not exist, or is unknown.

So it is in a container that runs as some user's number: HOME is / there, or not set, and the number has no name.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

NOBODY = 54321  # a user's number without an entry in passwd
CAPABILITIES = "-all,+dac_read_search"  # he may read all, as the interpreter and the libraries, and write nothing


def as_nobody(*command, home, cwd, **environment):
    """Run a script as a user who has no name and no home, or one that he cannot write; returns the process."""
    drop = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps", CAPABILITIES,
            "--ambient-caps", CAPABILITIES, "--bounding-set", CAPABILITIES]
    if sys.platform != "linux" or os.geteuid() or subprocess.run([*drop, "true"], capture_output=True).returncode:
        pytest.skip("root only can become another user")
    unset = {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME", "HOME"}
    environment |= {name: value for name, value in os.environ.items() if name not in unset}
    if home is not None:
        environment["HOME"] = home
    script, *flags = map(str, command)
    return subprocess.run([*drop, sys.executable, ROOT / script, *flags], cwd=cwd, env=environment, text=True,
                          capture_output=True)


@pytest.fixture
def anyones(tmp_path, sample_dir):
    """A folder that everybody can write; he can reach it, and the data."""
    for folder in (tmp_path, *tmp_path.parents, sample_dir, *sample_dir.parents):
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    place = tmp_path / "anyones"
    place.mkdir()
    place.chmod(0o777)
    return place


def test_read_only_data_is_trained_on_and_searched_without_a_home(anyones, sample_dir):
    flags = ["sample", "--data-dir", sample_dir, "--epochs", 1, "--batch-size", 32, "--run-dir", "run"]
    trained = as_nobody("train.py", *flags, home=None, cwd=anyones)
    assert trained.returncode == 0 and "Traceback" not in trained.stderr, trained.stderr
    assert "decoded photos cannot be kept" in trained.stdout
    assert "atplotlib" not in trained.stderr  # that it, too, has nowhere to keep something is nobody's worry

    search = ["--query", "a dog", "--gallery", sample_dir / "Images", "--checkpoint", "run"]
    found = as_nobody("inference.py", *search, home="/", cwd=anyones)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    assert "the index cannot be saved" in found.stdout and "Permission denied: '/.cache'" in found.stdout
    assert "cannot be kept ready" in found.stdout


OPENING = """
import os, sys
from pathlib import Path
import numpy, torch, safetensors.numpy, safetensors.torch, encodings.idna
import dataset, support.contact_sheet
from support.caption_forms import put_photo
from support.captions import read_dataset, folder_of_unpacked_photos
from support.errors import UserError
from support.files import writable
from support.kept import decode_once
from support.source import as_source
from search.index import Index, IndexFile
from search.kept_text_tower import keep_text_tower, open_text_tower

data = Path(sys.argv[1])
table = dataset.load_splits(data)["dev"]
photos = dataset.Photos(dataset.paths_of(table), 32)
photos.pixels(0)
os.setresuid(54321, 54321, 54321)
read_dataset(data)
assert decode_once(photos, data, "dev") is None
index_file = IndexFile(data, ".clip-index.safetensors")
assert index_file.read().files == []
index_file.save(Index())
assert index_file.unsaved
assert open_text_tower("0" * 64) is None
assert "Permission denied" in keep_text_tower(None, "0" * 64)
support.contact_sheet.system_fonts()
try:
    put_photo({"bytes": b"a photo", "path": None}, folder_of_unpacked_photos(as_source(data)), "a")
    said = ""
except UserError as error:
    said = str(error)
assert "Permission denied" in said and "XDG_CACHE_HOME=DIR" in said
somebody_elses = Path(os.environ["HOME"]) / ".clip-cache" / "photos" / "photo.jpg"
assert writable(somebody_elses) != somebody_elses
print("well")
"""


def test_a_home_of_somebody_else_is_done_without(anyones, sample_dir):
    if os.geteuid():
        pytest.skip("root only can become another user")
    home = anyones / "private"
    home.mkdir(mode=0o700)
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    del environment["XDG_CACHE_HOME"]
    command = [sys.executable, "-c", OPENING, sample_dir]
    process = subprocess.run(command, env=environment, cwd=anyones, text=True, capture_output=True)
    assert process.stdout.endswith("well\n"), process.stdout + process.stderr
