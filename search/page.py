"""What the page answers, in HTML, to what is typed and clicked in it; and how that looks."""

import contextlib
import functools
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from fastapi import HTTPException, Response

from search.markup import SIDE, data_url, escaped, grey_jpeg, jpeg, reduced_jpeg, sendable
from search.narrow import span_of
from search.question import Question
from search.remarks import remarks_on_matches, remarks_on_question
from support.dates import first_moment
from support.errors import UserError
from support.images import read_image

MOST_TYPED = 1_000  # characters in a field of the page, or in its address
DEFAULT_COUNT = 9  # of results

# ---------------------------------------------------------------- the answers


def status_html(*lines, kind="note"):
    """Return lines for the status of the page; kind: note or problem."""
    paragraphs = [f"<p class={kind}>{escaped(line)}</p>" for line in lines]
    return f'<div role="status">{"".join(paragraphs)}</div>'


class Asked(NamedTuple):
    """What is asked, in the order of the fields of the page; `checked` gives each its type."""

    prompt: str
    minus: str
    example: str | None  # path of an uploaded picture
    count: int
    least: float
    plus: str = ""
    under: str = ""
    after: str | None = None
    before: str | None = None
    sort: str = "score"  # or date

    def question(self):
        """Return it as a `search.question.Question`."""
        return Question(
            query=[words for words in (self.prompt, self.plus) if words],
            image=Path(self.example) if self.example else None,
            minus=[self.minus] if self.minus else [],
            top_k=self.count,
            threshold=self.least if self.least > -1 else None,
            under=[self.under] if self.under else [],
            after=self.after,
            before=self.before,
            sort=self.sort,
        )


def checked(asked):
    """Return an `Asked` that can be searched for; raises UserError for words that are too long, or no date."""
    words = {}
    for name in ("prompt", "minus", "plus", "under", "after", "before"):
        words[name] = sendable(getattr(asked, name) or "")
        if len(words[name]) > MOST_TYPED:
            raise UserError(f"a field takes {MOST_TYPED:,} characters, and not {len(words[name]):,}")
    for name in ("after", "before"):
        if words[name]:
            first_moment(words[name])
        else:
            words[name] = None
    sort = "date" if asked.sort == "date" else "score"
    return asked._replace(count=int(asked.count), sort=sort, **words)


def link_to(asked):
    """Return a link to the page that shows the same search, as HTML; none of a search by an uploaded picture."""
    if asked.example:
        return ""
    values = {
        "q": asked.prompt,
        "plus": asked.plus,
        "minus": asked.minus,
        "n": asked.count if asked.count != DEFAULT_COUNT else "",
        "least": f"{asked.least:g}" if asked.least > -1 else "",
        "under": asked.under,
        "after": asked.after,
        "before": asked.before,
        "sort": "date" if asked.sort == "date" else "",
    }
    address = urlencode({name: value for name, value in values.items() if value})
    return f'<a href="?{escaped(address)}">Link to this search</a>'


class Shown(NamedTuple):
    """What the page shows in answer: HTML, and the `Question`, to be explained later."""

    status: str
    results: str = ""
    explanation: str = ""
    question: Question | None = None
    link: str = ""


class Page:
    """The answers of the page about a gallery."""

    def __init__(self, gallery):
        self.gallery = gallery
        self.model_in_use = threading.Lock()  # held by whoever uses the model; prompts mostly do without
        self.reduced = functools.lru_cache(1000)(reduced_jpeg)  # 40 MB or so
        self.first_day, self.last_day = span_of(gallery.taken.moments)  # reads the dates that an old index lacks

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

    def answer(self, *typed):
        """Return what is `Shown` in answer.

        typed: the values of `Asked`, as they come from the browser, or from an address that anybody may have made.
        """
        start = time.perf_counter()
        try:
            asked = checked(Asked(*typed))
            question = asked.question()
            if not question.query and not question.image:
                return Shown(status_html("Describe a picture in a few words, or upload one to find others like it."))
            matches, remarks = self.find(question)
        except UserError as error:
            return Shown(status_html(error, kind="problem"))

        items = "".join(self.result(match) for match in matches)
        results = f'<ol class="matches">{items}</ol>' if matches else ""
        milliseconds = 1000 * (time.perf_counter() - start)
        status = status_html(*remarks, f"{self.about()}, {milliseconds:.0f} ms")
        return Shown(status, results, question=question, link=link_to(asked))

    def find(self, question):
        """Return the matches for a `Question`, and what a person should know of them, as lines; raises UserError."""
        gallery = self.gallery
        needs_model = question.image or not gallery.embedder.has_text_tower_ready
        waiting = self.model_in_use if needs_model else contextlib.nullcontext()
        with waiting:
            found = gallery.find(question)
            remarks = remarks_on_question(gallery, question, found.among)
        remarks += remarks_on_matches(gallery, question, found)
        return found.matches, remarks

    def result(self, match):
        """Return one match as an item of the list of results."""
        row = match.row
        words = self.name(row)
        if match.copies:
            words += f"<br>and {len(match.copies)} that look the same"
        score = f"<b>{match.rank}</b> {match.score:.3f}"
        if match.taken:
            score += f" <time>{match.taken}</time>"
        return (
            f'<li><button type="button" data-row="{row}" title="Show what was looked at"><img src="picture/{row}" '
            f'alt=""><span>{score}</span><span>{words}</span></button></li>'
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
        file = self.gallery.files[row]
        try:
            with self.model_in_use:
                overlay = self.gallery.explain(file, question.query, question.image, question.minus)
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

# ---------------------------------------------------------------- the address

# What the address holds goes into these fields: text into those of text, and into the others only what they can show.
# Last, as number 10, comes whether there is anything to search for.
IN_ADDRESS = ("prompt", "plus", "minus", "count", "least", "under", "after", "before", "sort")
FROM_ADDRESS = """() => {
  if (!location.search) return Array(10).fill({__type__: "update"});  // what somebody has typed by now stays
  const asked = new URLSearchParams(location.search);
  const words = name => (asked.get(name) ?? "").slice(0, 2000);
  const number = (name, least, most, otherwise) => {
    const value = asked.get(name) ? Number(asked.get(name)) : NaN;  // that of "" would be 0
    return Number.isFinite(value) ? Math.min(most, Math.max(least, value)) : otherwise;
  };
  return [words("q"), words("plus"), words("minus"), Math.round(number("n", 1, %d, %d)), number("least", -1, 1, -1),
    words("under"), words("after"), words("before"), asked.get("sort") === "date" ? "date" : "score",
    Boolean(words("q") || words("plus"))];
}"""

# The link to an answer becomes the address of the page; without one, the address holds no search.
INTO_ADDRESS = """link => {
  const anchor = new DOMParser().parseFromString(link ?? "", "text/html").querySelector("a");
  history.replaceState(null, "", location.pathname + (anchor?.getAttribute("href") ?? ""));
}"""
