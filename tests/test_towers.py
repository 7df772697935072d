"""search/export.py, support/hub.py: exported towers give what the model gives; a model goes to the hub and back."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_script
from huggingface_hub import ModelCard
from PIL import Image

from dataset import read_square
from models import CLIP
from search.export import export_model, onnx_difference
from search.onnx_text import PromptEncoder
from search.pictures import pictures_of_split
from support.errors import UserError
from support.hub import model_folder
from support.model_card import model_card

PROMPTS = "people sitting near the beach", "a dog running through water", "playing soccer", "a child in the snow"


@pytest.fixture(scope="module")
def exported(workplace):
    """Both towers of the run as ONNX, written by the command, and what it printed."""
    process = run_script("inference.py", "--checkpoint", "runs/first", "--export", "onnx", "--json", cwd=workplace)
    return workplace / "onnx", process


def test_exported_towers_give_what_the_model_gives(exported, checkpoint, sample_dir):
    folder, process = exported
    about = json.loads(process.stdout)
    assert about["export"] == "onnx" and about["difference"] < 1e-4
    model = CLIP.from_pretrained(checkpoint)
    files = sorted((sample_dir / "Images").iterdir())[:7]
    pixels = np.stack([read_square(file, model.config.image_size) for file in files]).transpose(0, 3, 1, 2)
    image = onnxruntime.InferenceSession(folder / "image.onnx")
    tokens = model.text_encoder.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        images = model.encode_image(torch.from_numpy(pixels)).numpy()
        texts = model.encode_text(tokens["input_ids"], tokens["attention_mask"]).numpy()
    assert np.abs(image.run(None, {"pixels": pixels})[0] - images).max() < 1e-4
    assert np.abs(image.run(None, {"pixels": pixels[:1]})[0] - images[:1]).max() < 1e-4  # any number of pictures
    assert np.abs(PromptEncoder(folder).embed(PROMPTS) - texts).max() < 1e-4


def test_the_example_scores_as_the_command_does_and_needs_no_torch(exported, workplace, checkpoint):
    """It ranks by score alone: hubs are lowered in a search, not in the towers."""
    folder, _ = exported
    example = (folder / "example.py").read_text(encoding="utf-8")
    assert "torch" not in re.sub('""".*?"""', "", example, flags=re.DOTALL)
    pictures = pictures_of_split(CLIP.from_pretrained(checkpoint).config)
    files = [pictures.root / name for name in pictures.names]
    for prompt in PROMPTS:
        ask = ["--query", prompt, "--json", "--no-picture", "--no-fold", "--top-k", len(files)]
        said = json.loads(run_script("inference.py", *ask, cwd=workplace).stdout)["matches"]
        shown = subprocess.run([sys.executable, folder / "example.py", prompt, *files], capture_output=True, text=True,
                               check=True).stdout.splitlines()
        scores = {line.split()[1]: float(line.split()[0]) for line in shown}
        assert shown[0].split()[1] == max(said, key=lambda match: match["score"])["file"]
        assert [scores[match["file"]] for match in said] == pytest.approx([match["score"] for match in said], abs=2e-3)


def test_a_folder_that_holds_something_is_not_written_over(exported, workplace):
    folder, _ = exported
    before = sorted(folder.iterdir())
    process = run_script("inference.py", "--export", "onnx", cwd=workplace, check=False)
    assert process.returncode == 2 and process.stderr == "error: --export onnx is there already: name a new folder\n"
    assert sorted(folder.iterdir()) == before and not list(workplace.glob(".onnx*"))


def test_towers_that_differ_are_not_exported(exported, checkpoint):
    model = CLIP.from_pretrained(checkpoint)
    assert onnx_difference(model, exported[0]) < 1e-4
    with torch.no_grad():
        model.text_head.norm.bias[0] += 0.01
    with pytest.raises(UserError, match="differ from the model by"):
        onnx_difference(model, exported[0])


def test_towers_that_cannot_be_exported_are_one_line_and_leave_nothing(checkpoint, tmp_path, monkeypatch):
    model = CLIP.from_pretrained(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(model.text_encoder, "forward", lambda *_: exec("raise ValueError('no such\\noperator')"))
        with pytest.raises(UserError, match="new cannot be written, for torch cannot write these towers as ONNX"):
            export_model(model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_transparent_picture_scores_the_same_in_the_example(exported, workplace, tmp_path):
    pixels = np.zeros((80, 120, 4), np.uint8)
    pixels[20:60, 20:100] = 40, 160, 60, 255  # a green field; around it a black that is not seen
    Image.fromarray(pixels).save(tmp_path / "cut out.png")
    said = run_script("inference.py", "--query", "a forest", "--json", "--no-picture", "--gallery", tmp_path,
                      cwd=workplace).stdout
    shown = subprocess.run([sys.executable, exported[0] / "example.py", "a forest", tmp_path / "cut out.png"],
                           capture_output=True, text=True, check=True).stdout
    assert float(shown.split()[0]) == pytest.approx(json.loads(said)["matches"][0]["score"], abs=2e-3)


# ---------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a model needs to be pushed and fetched; its repositories are folders."""

    root, requests, sha = None, None, "a" * 40

    def answer(self, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            sent = b"".join(parts)
        else:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append(self.path)
        here = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            asked = json.loads(sent)
            self.answer({"url": f"{here}/{asked.get('organization') or 'me'}/{asked['name']}"})
        elif "/preupload/" in self.path:
            self.answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                   for file in json.loads(sent)["files"]]})
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    target = self.root / re.search("models/(.+)/commit", self.path)[1] / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            self.answer({"commitUrl": f"{here}/me/clip/commit/{self.sha}", "commitOid": self.sha})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        self.requests.append(self.path)
        if match := re.match("/api/models/([^/]+/[^/?]+)", self.path):
            folder = self.root / match[1]
            if not folder.is_dir():
                return self.send_error(404)
            sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*")
                     if file.is_file()}
            files = [{"type": "file", "oid": "1", "path": name, "size": size} for name, size in sizes.items()]
            self.answer(files if "/tree/" in self.path else
                        {"id": match[1], "sha": self.sha, "siblings": [{"rfilename": name} for name in sizes]})
        elif match := re.match("/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            content = (self.root / match[1] / match[2]).read_bytes()
            self.answer(content, X_Repo_Commit=self.sha, ETag=f'"{hash(content):x}"')
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine: its folder, what was asked of it, and the environment in which a command finds it."""
    handler = type("Here", (Hub,), {"root": tmp_path / "hub", "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    yield handler.root, handler.requests, environment
    server.shutdown()


def python(lines, cwd, environment):
    return subprocess.run([sys.executable, "-c", lines], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_model_goes_to_the_hub_and_comes_back(hub, workplace, checkpoint, sample_dir, tmp_path):
    folder, requests, environment = hub
    pushed = python("from models import CLIP\nprint(CLIP.from_pretrained('runs/first/best').push_to_hub('clip', "
                    "card='runs/first/best/README.md', token='secret'))", workplace, environment)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip().endswith("a" * 40)
    names = {file.relative_to(checkpoint).as_posix() for file in checkpoint.rglob("*") if file.is_file()}
    there = folder / "me" / "clip"
    assert names == {file.relative_to(there).as_posix() for file in there.rglob("*") if file.is_file()}
    assert (there / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert str(workplace) not in (there / "config.json").read_text() + (there / "README.md").read_text()
    assert 'CLIP.from_pretrained("me/clip")' in (there / "README.md").read_text()

    (there / "pytorch_model.bin").write_bytes(b"code")
    (there / "evil.py").write_text("raise SystemExit")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in sorted((sample_dir / "Images").iterdir())[:5]:
        shutil.copy(file, pictures)
    ask = [sys.executable, ROOT / "inference.py", "--query", "a dog", "--json", "--no-picture", "--gallery", pictures]
    answers = [subprocess.run([*ask, "--checkpoint", name], cwd=workplace, env=environment, capture_output=True,
                              text=True) for name in ("runs/first", "hf-hub:me/clip")]
    assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
    mine, fetched = (json.loads(answer.stdout)["matches"] for answer in answers)
    assert [match["file"] for match in mine] == [match["file"] for match in fetched]
    assert not any("evil" in path or "bin" in path for path in requests if "/resolve/" in path)


def test_a_model_that_the_hub_does_not_have_is_one_line(hub, tmp_path):
    _, _, environment = hub
    failed = python("from support.errors import one_line_errors\nfrom models import CLIP\n"
                    "with one_line_errors(): CLIP.from_pretrained('me/nothing')", tmp_path, environment)
    assert failed.returncode == 2 and failed.stderr.startswith("error: me/nothing ") and failed.stderr.count("\n") == 1


def test_what_the_hub_refuses_is_one_line_and_an_error_of_ours_is_not(hub, workplace, monkeypatch):
    _, _, environment = hub
    refused = python("from support.errors import one_line_errors\nfrom models import CLIP\nwith one_line_errors():\n"
                     "    CLIP.from_pretrained('runs/first/best').push_to_hub('a/b/c', token='secret')", workplace,
                     environment)
    assert refused.returncode == 2 and refused.stderr.startswith("error: a/b/c cannot be written"), refused.stderr
    model = CLIP.from_pretrained(workplace / "runs" / "first" / "best")
    monkeypatch.setattr(model, "save_pretrained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.push_to_hub("me/clip", token="secret")


@pytest.mark.parametrize("name", ["hf-hub:nothing", "hf-hub:me/clip@v1", "hf-hub:"])
def test_a_hub_name_that_cannot_be_is_said_to_be_one(name):
    with pytest.raises(UserError, match="hf-hub: is followed by OWNER/NAME"):
        model_folder(name)


def test_without_a_hub_a_name_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="me/nothing is no folder here, nor can the Hugging Face hub give it"):
        model_folder("me/nothing")
    (tmp_path / "nothing").mkdir()
    assert model_folder(tmp_path / "nothing") == tmp_path / "nothing"
    with pytest.raises(UserError, match="is not a model directory: it has no config.json"):
        CLIP.from_pretrained(tmp_path / "nothing")


def test_the_card_of_a_run_holds_its_own_figures(workplace, checkpoint):
    card = ModelCard.load(checkpoint / "README.md")
    rows = re.findall(r"\| (test|dev), 16 photos, 80 captions \| (text to image|image to text) \| ([\d.]+) \| ([\d.]+)"
                      r" \| ([\d.]+) \| ([\d.]+) \|", card.text)
    assert len(rows) == 4
    log = (workplace / "train.log").read_text()
    for split, direction, *figures in rows:
        if split == "test":  # the table that training printed last
            assert re.search(direction.replace(" to ", " -> ") + r"\s+" + r"\s+".join(map(re.escape, figures)), log)
    results = {(result.dataset_split, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert len(results) == 12
    for split, direction, *figures in rows:
        for key, figure in zip(("R@1", "R@5", "R@10"), figures, strict=False):
            assert results[split, f"{direction} {key}"] == pytest.approx(float(figure), abs=0.06)


def test_the_card_changes_no_fingerprint_and_names_no_path(checkpoint):
    from support.files import fingerprint

    before, readme = fingerprint(checkpoint), (checkpoint / "README.md").read_text()
    (checkpoint / "README.md").write_text("changed by its owner")
    assert fingerprint(checkpoint) == before
    (checkpoint / "README.md").write_text(readme)
    config = replace(CLIP.from_pretrained(checkpoint).config, image_encoder="local-dir:/home/me/towers/resnet",
                     data_dir=Path("/home/me/photos"))
    assert "/home/me" not in model_card(config) and "resnet" in model_card(config)
