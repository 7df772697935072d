"""The repository itself: README commands still parse, the layout stays closed, imports run one way."""

import ast
import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, run_script

import config

SCRIPTS = ["config.py", "dataset.py", "cache.py", "models.py", "gallery.py", "evaluate.py", "train.py", "inference.py",
           "app.py"]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "benchmarks" / "README.md"]


def commands():
    """Every `python SCRIPT …` in the fenced blocks and inline code of the pages, as lists of words."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for code in re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL):
            for line in "".join(code).splitlines():
                for part in re.split(r"&&|;", line.split("  #")[0]):
                    part = re.sub(r"^\s*torchrun --nproc-per-node=\S+", "python", part)
                    if re.match(r"\s*python [a-z_/0-9]+\.py", part):
                        found.append(shlex.split(part))
    return found


@functools.cache
def help_of(script):
    return run_script(script, "--help", cwd=ROOT).stdout


def test_the_readme_shows_the_main_commands():
    shown = {" ".join(words) for words in commands()}
    assert {"python train.py", "python inference.py --query people sitting near the beach"} <= shown
    assert len(shown) >= 8


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_readme_parses(words, tmp_path, monkeypatch):
    _, script, *flags = words
    assert (ROOT / script).is_file()
    if script.startswith(("data/", "benchmarks/")):
        assert all(flag in help_of(script) for flag in flags if flag.startswith("--"))
        return
    monkeypatch.chdir(tmp_path)
    if "--resume" in flags:
        run_dir = Path("runs/sample-1/last")
        run_dir.mkdir(parents=True)
        config.PRESETS["sample"].save(run_dir / "config.json")
    {
        "train.py": lambda: config.parse_train(flags),
        "evaluate.py": lambda: config.parse(config.EvaluateConfig, flags),
        "inference.py": lambda: config.parse(config.InferenceConfig, flags),
        "app.py": lambda: config.parse(config.AppConfig, flags),
    }[script]()


def test_ci_runs_the_commands_of_the_readme():
    test_command = 'pip install -e ".[dev]" && pytest'
    assert test_command in (ROOT / "README.md").read_text(encoding="utf-8")
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert 'pip install --quiet -e ".[dev]"' in lines and "pytest" in lines


def test_pages_link_to_files_that_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def tracked():
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")[:-1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_level_is_closed():
    allowed = {"README.md", "LICENSE", "pyproject.toml", "benchmarks", "data", "tests", *SCRIPTS}
    top = {name.split("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} == allowed


def test_imports_run_one_way():
    order = {script.removesuffix(".py"): place for place, script in enumerate(SCRIPTS)}
    allowed = {"inference": {"config", "gallery", "dataset", "cache", "models"},
               "app": {"config", "gallery", "inference"}}
    for script in SCRIPTS:
        name = script.removesuffix(".py")
        tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        ours = imported & set(order)
        assert all(order[other] < order[name] for other in ours) and ours <= allowed.get(name, set(order)), name


def test_scripts_stay_short():
    lengths = {script: len((ROOT / script).read_text(encoding="utf-8").splitlines()) for script in SCRIPTS}
    assert max(lengths.values()) <= 400, lengths
    for script in SCRIPTS:
        tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= (100 if node.name == "main" else 60), f"{script}: {node.name} has {length} lines"


def test_every_setting_has_its_help_text():
    source = (ROOT / "config.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.target.id != "preset":
                    assert "  # " in source.splitlines()[field.end_lineno - 1], f"{node.name}.{field.target.id}"


def test_nothing_is_unpickled_and_no_code_is_fetched():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("benchmarks/*.py")]:
        text = path.read_text(encoding="utf-8")
        for word in ("pickle.", "torch.load(", "torch.save(", "trust_remote_code=True", "share=True", "np.load(",
                     "allow_pickle", "torch.hub.load", "torch.package", "weights_only=False", "shell=True", "os.system",
                     "use_safetensors=False"):
            assert word not in text, f"{path.name}: {word}"
        for node in ast.walk(ast.parse(text)):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {
                node.module} if isinstance(node, ast.ImportFrom) else set()
            assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path.name
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            assert called not in {"eval", "exec", "compile"}, f"{path.name} line {node.lineno}"
    for path in ROOT.glob("tests/*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "torch.load(" in line and path.name != "test_repo.py":
                assert "weights_only=True" in line, f"{path.name}: {line}"
