"""The repository itself: commands of the pages still parse, the layout stays closed, imports run one way."""

import ast
import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, run_script

import config
import train

# in the order in which they are read
SCRIPTS = ["config.py", "dataset.py", "models.py", "evaluate.py", "train.py", "inference.py", "app.py"]
FOLDERS = ["support", "search", "data", "benchmarks"]  # of modules, beside tests
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md",
         ROOT / "benchmarks" / "README.md"]


def commands():
    """Every `python SCRIPT …` in the fenced blocks and inline code of the pages, as lists of words."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for code in re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL):
            for line in "".join(code).splitlines():
                for part in re.split(r"&&|;", line.split("  #")[0]):
                    part = re.sub(r"^\s*(\w+=\S+\s+)+", "", part)  # variables of the environment
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
    if script.startswith(("data/", "benchmarks/", "docs/")):
        assert all(flag in help_of(script) for flag in flags if flag.startswith("--"))
        return
    monkeypatch.chdir(tmp_path)
    for word in flags:
        if word.endswith("my_dog.jpg"):  # without a flag, it must be there
            Path(word).touch()
    command = {
        "train.py": lambda: config.parse_train(flags),
        "dataset.py": lambda: config.parse(config.DatasetConfig, flags),
        "evaluate.py": lambda: config.parse(config.EvaluateConfig, flags),
        "inference.py": lambda: config.parse(config.InferenceConfig, flags),
        "app.py": lambda: config.parse(config.AppConfig, flags),
    }[script]()
    if "--resume" in flags:
        run_dir = command.config.run_dir or Path("runs/sample-1")
        (run_dir / "last").mkdir(parents=True)
        config.PRESETS["sample"].save(run_dir / "last" / "config.json")
        monkeypatch.setattr("sys.argv", [script, *flags])
        assert train.read_again(command).config.run_dir == run_dir


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
    allowed = {"README.md", "LICENSE", "pyproject.toml", "docs", "tests", *FOLDERS, *SCRIPTS}
    top = {name.split("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} == allowed


# ---------------------------------------------------------------- imports


def modules_in(root):
    """The modules of a checkout by their dotted names, tests left out: {name: path}."""
    paths = [*root.glob("*.py"), *(path for folder in FOLDERS for path in (root / folder).glob("**/*.py"))]
    names = {}
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(path, modules):
    """Yield (module, whether only a function imports it) for each of our modules that a file imports, wherever.

    It may be one that is not there.
    """
    tops = {name.split(".")[0] for name in modules} | set(FOLDERS)

    def visit(node, in_function):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inside]  # `from search import index`
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            names = [str(node.args[0].value)] if called in ("__import__", "import_module", "run_module") else []
        yield from ((name, in_function) for name in names if name.split(".")[0] in tops)
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function)

    return visit(ast.parse(path.read_text(encoding="utf-8")), False)


def circle_in(graph):
    """A list of modules each of which imports the next, and the last the first; None where there is none."""
    done, way = set(), []

    def visit(name):
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return None
        way.append(name)
        for other in sorted(graph[name]):
            if circle := visit(other):
                return circle
        done.add(way.pop())
        return None

    return next(filter(None, map(visit, sorted(graph))), None)


# What each part may import anywhere in its files, and what in its functions only. Libraries are not meant.
MAY_IMPORT = {
    "support": ({"support"}, set()),
    "config": ({"support"}, set()),
    "dataset": ({"support", "config"}, set()),
    "models": ({"support", "config", "dataset"}, set()),
    "evaluate": ({"support", "config", "dataset", "models"}, set()),
    "train": ({"support", "config", "dataset", "models", "evaluate", "data.sample_scenes"}, set()),
    "search": ({"support", "config", "search"}, {"dataset", "models"}),
    "inference": ({"support", "config", "search"}, {"dataset", "models"}),
    "app": ({"support", "config", "search", "inference"}, set()),
}


def wrong_imports(root):
    """Each import of a checkout that runs another way than it may, as words."""
    modules, wrong = modules_in(root), []
    for name, path in modules.items():
        part = name.split(".")[0]
        if part in ("data", "benchmarks"):  # these may import anything that leads back to nothing
            continue
        anywhere, in_functions = MAY_IMPORT[part]
        for imported, in_function in imports_of(path, modules):
            meant = {imported, imported.split(".")[0]}
            if not meant & anywhere and not (in_function and meant & in_functions):
                wrong.append(f"{name} imports {imported}" + " in a function" * in_function)
    return wrong


def circle_of_imports(root):
    modules = modules_in(root)
    return circle_in({name: {other for other, _ in imports_of(path, modules)} & modules.keys()
                      for name, path in modules.items()})


def missing_modules(root):
    """Each import of a module of ours that is not there, as words."""
    modules = modules_in(root)
    return [f"{name} imports {other}" for name, path in modules.items()
            for other, _ in imports_of(path, modules) if other not in modules]


def test_imports_run_one_way():
    assert wrong_imports(ROOT) == []
    assert set(MAY_IMPORT) == {*(script.removesuffix(".py") for script in SCRIPTS), "support", "search"}


def test_no_imports_run_in_a_circle():
    assert circle_of_imports(ROOT) is None


def test_what_is_imported_is_there():
    assert missing_modules(ROOT) == []


@pytest.mark.parametrize("files, wrong, circle", [
    ({"config": "import support.a", "support/a": "import os, numpy"}, [], None),
    ({"support/a": "import config", "config": ""}, ["support.a imports config"], None),
    ({"support/a": "def f():\n    if f:\n        from config import Config", "config": ""},
     ["support.a imports config in a function"], None),
    ({"config": "from support import a", "support/a": "import config"}, ["support.a imports config"],
     ["config", "support.a"]),
    ({"search/a": "def f():\n    import models\nfrom dataset import pad", "models": "", "dataset": ""},
     ["search.a imports dataset"], None),
    ({"search/a": "class A:\n    import models", "models": ""}, ["search.a imports models"], None),
    ({"search/a": "from search import b", "search/b": "async def f(): import search.c",
      "search/c": "f = lambda: __import__('search.a')"}, [], ["search.a", "search.b", "search.c"]),
    ({"search/a": "import data.a", "data/a": "import train", "train": ""}, ["search.a imports data.a"], None),
    ({"train": "import data.sample_scenes", "data/sample_scenes": "def f(): import train"}, [],
     ["data.sample_scenes", "train"]),
    ({"train": "import data.make_shards", "data/make_shards": ""}, ["train imports data.make_shards"], None),
    ({"app": "from models import CLIP", "models": "import app"}, ["app imports models", "models imports app"],
     ["app", "models"]),
    ({"models": "import models"}, ["models imports models"], ["models"]),
    ({"support/__init__": "from support.a import b", "support/a": "import support"}, [], ["support", "support.a"]),
])
def test_the_guard_of_imports_sees_what_it_should(tmp_path, files, wrong, circle):
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert sorted(wrong_imports(tmp_path)) == wrong and circle_of_imports(tmp_path) == circle


def test_the_guard_sees_an_import_of_what_is_not_there(tmp_path):
    (tmp_path / "config.py").write_text("def f():\n    from support.gone import one")
    assert missing_modules(tmp_path) == ["config imports support.gone"]


# ---------------------------------------------------------------- settings, and what is never done


def test_every_setting_has_its_help_text():
    source = (ROOT / "config.py").read_text(encoding="utf-8")
    settings = {node.name: node.body for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.ClassDef) and node.name.endswith("Config")}
    assert settings.keys() == {"Config", "DatasetConfig", "EvaluateConfig", "InferenceConfig", "AppConfig"}
    for name, body in settings.items():
        for field in body:
            if isinstance(field, ast.AnnAssign) and field.target.id != "preset":
                assert "  # " in source.splitlines()[field.end_lineno - 1], f"{name}.{field.target.id}"


def test_nothing_is_unpickled_and_no_code_is_fetched():
    walked = modules_in(ROOT)
    assert {"train", "support.strangers", "search.embedder", "data.make_shards", "benchmarks.search"} <= walked.keys()
    for path in walked.values():
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
