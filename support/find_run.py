"""Which run, and which model directory, a command is about where its flags leave that open. Imports no torch."""

from pathlib import Path

from support.errors import UserError


def newest_run(holding, pattern="*"):
    """Return the folder `runs/<pattern>` whose file `holding`, such as last/config.json, was written last."""
    files = sorted(Path("runs").glob(f"{pattern}/{holding}"), key=lambda file: file.stat().st_mtime)
    if files:
        return files[-1].parents[len(Path(holding).parts) - 1]
    flag = "--run-dir" if holding.startswith("last") else "--checkpoint"
    wanted = Path("runs") / pattern / holding
    raise UserError(f"no {wanted} in {Path.cwd()}: train a model first (python train.py), or name one with {flag}")


def checkpoint_dir(given):
    """Return the model directory given, `best/` of the run given or the newest, or the copy of "hf-hub:OWNER/NAME".

    A file, such as model.safetensors, means the directory that it lies in.
    """
    if str(given).startswith("hf-hub:"):
        from support.hub import model_folder

        return model_folder(given)
    if given and given.is_file():
        given = given.parent
    run_dir = given or newest_run("best/config.json")
    return run_dir / "best" if (run_dir / "best").is_dir() else run_dir
