"""The two pages of the tour, docs/tour.md and docs/tour.ipynb, from their one source, docs/tour/source.md.

In the source stands, in place of what the scripts say and do:

    {{recall.honest:.1f}}                    a number of docs/tour.json, in a format of Python's
    {{picture NAME: what it shows}}          docs/tour/NAME-light.png, or -dark.png, with an alternative text
    {{quote SCRIPT: begins ... ends}}        lines of a script, from one that begins so to the next that holds that
    ```notebook                              a cell of the notebook, which the page leaves out
"""

import html
import re
import textwrap

import nbformat
from nbclient import NotebookClient

PICTURE = re.compile(r"^\{\{picture (\w+): (.+)\}\}$", re.MULTILINE)
QUOTE = re.compile(r"^\{\{quote (\S+): (.+?) \.\.\. (.+)\}\}$", re.MULTILINE)
NUMBER = re.compile(r"\{\{([a-z0-9_.]+)(?::([^{}]+))?\}\}")
CELL = re.compile(r"^```notebook\n(.*?)^```\n\n?", re.MULTILINE | re.DOTALL)
SECONDS = 300  # that a cell may take


def write_pages(numbers, root):
    """Write docs/tour.md and docs/tour.ipynb; the outputs of cells that have not changed are kept."""
    source = (root / "docs" / "tour" / "source.md").read_text(encoding="utf-8")
    (root / "docs" / "tour.md").write_text(page_of(source, numbers, root), encoding="utf-8")
    path = root / "docs" / "tour.ipynb"
    notebook = notebook_of(source, numbers, root)
    if path.exists():
        keep_outputs(notebook, nbformat.read(path, as_version=4))
    nbformat.write(notebook, path)


def page_of(source, numbers, root):
    """Return the page, as Markdown."""
    text = CELL.sub("", source)
    text = PICTURE.sub(for_light_and_dark, text)
    return filled_in(text, numbers, root)


def notebook_of(source, numbers, root):
    """Return the notebook, without outputs."""
    text = PICTURE.sub(r"![\2](tour/\1-light.png)", source)
    cells = []
    for place, part in enumerate(CELL.split(text)):  # words and code by turns
        if place % 2:
            cells.append(nbformat.v4.new_code_cell(part.strip()))
        elif part.strip():
            cells.append(nbformat.v4.new_markdown_cell(filled_in(part, numbers, root).strip()))
    for place, cell in enumerate(cells):
        cell.id = f"cell-{place}"  # else a random one each time
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def execute_notebook(path, folder):
    """Run the cells of a notebook in a folder, and write it with their outputs."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=SECONDS, resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # without progress bars, and what libraries say about this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def keep_outputs(notebook, earlier):
    """Give the cells of a notebook the outputs that the same code had in an earlier one."""
    known = {cell.source: cell for cell in earlier.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source in known:
            cell.outputs = known[cell.source].outputs
            cell.execution_count = known[cell.source].execution_count


# ---------------------------------------------------------------- what is filled in


def for_light_and_dark(match):
    """Return a picture in HTML, for GitHub shows the one that fits the colours of the page."""
    name, words = match.groups()
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="tour/{name}-dark.png">'
        f'<img src="tour/{name}-light.png" alt="{html.escape(words)}"></picture>'
    )


def filled_in(text, numbers, root):
    """Return text with its quotes and numbers in place."""

    def quote(match):
        script, begins, ends = match.groups()
        lines = quoted_lines((root / script).read_text(encoding="utf-8"), begins, ends, script)
        return f"From [{script}](../{script}):\n\n```python\n{lines}\n```"

    def number(match):
        name, form = match.groups()
        return format(number_called(name, numbers), form or "")

    return NUMBER.sub(number, QUOTE.sub(quote, text))


def quoted_lines(script, begins, ends, name):
    """Return the lines of a script from the first that begins so to the next that holds `ends`, without indent."""
    lines = script.splitlines()
    first = next((place for place, line in enumerate(lines) if line.strip().startswith(begins)), None)
    if first is None:
        raise ValueError(f"no line of {name} begins with {begins!r}: mend the quote in docs/tour/source.md")
    last = next((place for place in range(first, len(lines)) if ends in lines[place]), None)
    if last is None:
        raise ValueError(f"no line of {name} after {begins!r} holds {ends!r}: mend the quote in docs/tour/source.md")
    return textwrap.dedent("\n".join(lines[first : last + 1]))


def number_called(name, numbers):
    """Return the number of a name such as recall.honest, or hand.rows.0."""
    value = numbers
    for key in name.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value
