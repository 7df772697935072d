"""What the page answers, in HTML, to what is typed and clicked in it; and how that looks."""

import contextlib
import functools
import threading
import time
from pathlib import Path
from typing import NamedTuple

from fastapi import HTTPException, Response

from search.markup import SIDE, data_url, escaped, grey_jpeg, jpeg, reduced_jpeg, sendable
from support.errors import UserError
from support.images import read_image

# ---------------------------------------------------------------- the answers


def status_html(*lines, kind="note"):
    """Return lines for the status of the page; kind: note or problem."""
    paragraphs = [f"<p class={kind}>{escaped(line)}</p>" for line in lines]
    return f'<div role="status">{"".join(paragraphs)}</div>'


class Question(NamedTuple):
    """What was asked, for an explanation later."""

    prompts: list
    example: str | None  # path of an uploaded picture
    minus: list


class Page:
    """The answers of the page about a gallery."""

    def __init__(self, gallery):
        self.gallery = gallery
        self.model_in_use = threading.Lock()  # held by whoever uses the model; prompts mostly do without
        self.reduced = functools.lru_cache(1000)(reduced_jpeg)  # 40 MB or so

    def warm(self):
        """Load the model: here rather than while the page is up, for the first prompts would wait for seconds."""
        import matplotlib.pyplot  # noqa: F401 - Gradio does it at the first click, and it takes half a second

        with contextlib.suppress(UserError):
            self.gallery.search("a dog", 1, image=self.gallery.files[0])

    def about(self):
        """Return what is searched, by which model, as one line."""
        skipped = f", {len(self.gallery.skipped)} more cannot be read" if self.gallery.skipped else ""
        count = f"{len(self.gallery.files):,} pictures of {self.gallery.name}"
        return f"{self.gallery.embedder.checkpoint} on {count}{skipped}"

    def picture(self, row: int):
        """Return picture number `row` of the gallery, reduced; a grey one where its file is gone or damaged by now."""
        if row >= len(self.gallery.files):
            raise HTTPException(404)
        try:
            content = self.reduced(self.gallery.files[row])
        except OSError:
            content = grey_jpeg()
        # "no-store": in another gallery the numbers are those of other pictures
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    def name(self, row):
        """Return the name of a picture inside the gallery, as HTML."""
        return escaped(self.gallery.name_of(row))

    def answer(self, prompt, minus, example, count, least):
        """Return the status, the results, an empty explanation, and the `Question`, to be explained later."""
        start = time.perf_counter()
        prompts = [sendable(prompt)] if sendable(prompt or "") else []
        minus = [sendable(minus)] if sendable(minus or "") else []
        if not prompts and not example:
            return status_html("Describe a picture in a few words, or upload one to find others like it."), "", "", None

        embedder = self.gallery.embedder
        needs_model = example or not embedder.has_text_tower_ready
        with self.model_in_use if needs_model else contextlib.nullcontext():
            remarks = [remark for words in prompts + minus for remark in embedder.remarks(words)]
            try:
                embedding = self.gallery.query_embedding(prompts, example, minus)
            except UserError as error:
                return status_html(error, kind="problem"), "", "", None

        is_prompt = not example and not minus
        matches = self.gallery.rank(embedding, int(count), threshold=least, is_prompt=is_prompt)
        remarks += self.gallery.remarks_on_order(matches)
        if not matches:
            best = self.gallery.best_score(embedding)
            remarks.append(f"No picture scores {least:g} or more: the best has {best:.3f}.")
        elif is_prompt:
            remark = self.gallery.nothing_fits(matches)
            if remark:
                remarks.append(remark)
        items = "".join(self.result(match) for match in matches)
        results = f'<ol class="matches">{items}</ol>' if matches else ""
        milliseconds = 1000 * (time.perf_counter() - start)
        status = status_html(*remarks, f"{self.about()}, {milliseconds:.0f} ms")
        return status, results, "", Question(prompts, example, minus)

    def result(self, match):
        """Return one match as an item of the list of results."""
        row = match.row
        words = self.name(row)
        if match.copies:
            words += f"<br>and {len(match.copies)} that look the same"
        return (
            f'<li><button type="button" data-row="{row}" title="Show what was looked at"><img src="picture/{row}" '
            f'alt=""><span><b>{match.rank}</b> {match.score:.3f}</span><span>{words}</span></button></li>'
        )

    def example(self, file):
        """Return the uploaded picture as the page shows it, and its path, or a message in its place, and None."""
        name = Path(file).name
        try:
            pixels = read_image(Path(file), shrink_to=SIDE)
        except OSError as error:
            reason = str(error).removeprefix(f"{file}: ")
            return status_html(f"{name} cannot be used as an example: {reason}", kind="problem"), None
        figure = (
            f'<figure class="example"><img src="{data_url(jpeg(pixels))}" alt="">'
            f"<figcaption>pictures like {escaped(name)}</figcaption></figure>"
        )
        return figure, file

    def explain(self, question, row):
        """Return one result with a picture of where in it the model found what was asked."""
        if not question or not isinstance(row, int) or not 0 <= row < len(self.gallery.files):
            return ""
        prompts, example, minus = question
        file = self.gallery.files[row]
        try:
            with self.model_in_use:
                overlay = self.gallery.explain(file, prompts, example, minus)
            source = data_url(jpeg(overlay))
            words = "Red marks what answers, in "
        except UserError as error:
            source = f"picture/{row}"
            words = f"{escaped(error)}: "
        except OSError:
            source = f"picture/{row}"
            words = "the file is gone or damaged by now: "
        return (
            f'<figure><img src="{source}" alt=""><figcaption role="status">{words}{self.name(row)}</figcaption>'
            '<button type="button">Close</button></figure>'
        )


# ---------------------------------------------------------------- how it looks

STYLE = """
.gradio-container > .app {max-width: 1224px; margin: auto; padding: 12px !important}
.html-container {padding: 0 !important} .html-container p {margin: 0 0 4px}
.matches {display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; list-style: none; margin: 0; padding: 0}
.matches button {width: 100%; display: flex; flex-direction: column; padding: 6px; text-align: left; font-weight: 400}
.matches img {width: 100%; aspect-ratio: 4 / 3; object-fit: cover; border-radius: 4px; background: #8883}
.matches span {overflow-wrap: anywhere; font-size: 90%}
.problem {color: #c00} .dark .problem {color: #f88}
figure img {width: 100%; max-height: 60vh; object-fit: contain} .example img {width: auto; max-height: 120px}
.gradio-container :focus-visible {outline: 3px solid #e65100 !important; outline-offset: 2px}
#side:not(:has(figure)) {display: none} #side {position: sticky; top: 8px; align-self: flex-start}
@media (max-width: 640px) {
  .matches {grid-template-columns: 1fr}
  #side {position: fixed; inset: auto 0 0 0; z-index: 9; padding: 12px; max-height: 80vh; overflow: auto;
    background: var(--body-background-fill); box-shadow: 0 0 12px #0006}
}
"""

# A click in the results asks for an explanation of that one; a click on the button of an explanation closes it.
ON_CLICK = """element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.row) trigger("select", {row: Number(button.dataset.row)});
  else if (button) props.value = "";
})"""
