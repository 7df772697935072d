"""Find pictures by describing them, in the browser.

    python app.py                                             # the data trained on, at http://127.0.0.1:7860
    python app.py --gallery ~/Pictures --checkpoint runs/NAME # any folder, or several, with any model

The address answers at once: while pictures are embedded it says how far that is. The page searches with
`inference.Gallery`, as `inference.py` does. Its address holds the search, `/?q=a+dog&after=2019`, so that a search can
be kept and sent. To the browser go pictures of the gallery, reduced and without what the camera noted in them, and
never a file: `/picture/7` is number 7 of the gallery, and there is no way to name another.
A link in the gallery to a picture elsewhere shows that picture, as its owner put it there; links to folders are not
followed. search/guard.py decides who may ask, and for what.
"""

from config import AppConfig, InferenceConfig, parse
from support.errors import UserError, one_line_errors, shown

if __name__ == "__main__":
    FLAGS = parse(AppConfig)  # first of all, so that --help and a mistyped flag answer at once

import contextlib
import signal
import sys
from types import SimpleNamespace

from inference import Gallery
from search.uploads import UPLOADED  # noqa: F401 - before Gradio, which is told by it where uploads go
from support.find_run import checkpoint_dir
from support.images import lines_on_links
from support.picture_kinds import readable_suffixes, skipped_lines

try:
    import gradio as gr
    from fastapi import FastAPI

    from search.guard import MOST_UPLOADED, is_loopback
    from search.page import (
        DEFAULT_COUNT,
        FROM_ADDRESS,
        IN_ADDRESS,
        INTO_ADDRESS,
        ON_CLICK,
        STYLE,
        Asked,
        Page,
        Shown,
        status_html,
    )
    from search.web import GuardedBlocks, listen, server, waiting_page
except ModuleNotFoundError as error:
    with one_line_errors():
        raise UserError(f'the page needs {error.name}: type pip install -e ".[app]"') from None

EXAMPLES = ["people sitting near the beach", "people walking inside the forest", "playing soccer"]
MOST_SHOWN = 50  # pictures in one answer

# ---------------------------------------------------------------- what stands where, and which click asks what


def build(page):
    """Return the page as Gradio's Blocks: what stands where, and which click asks what."""
    blocks = GuardedBlocks(
        title="Find pictures",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(600, 3600),  # seconds: how often uploads are looked through, and how old they may be
    )
    with blocks:
        parts = lay_out(page)
        connect(page, parts, blocks)
    return blocks.queue(max_size=256)


def lay_out(page):
    """Put everything in its place, from top to bottom; returns all of it by name."""
    parts = SimpleNamespace()
    parts.question = gr.State()  # what was asked last, to be explained
    parts.example = gr.State()  # the path of an uploaded picture
    with gr.Row(equal_height=True):
        parts.prompt = gr.Textbox(
            label="What should the pictures show?",
            placeholder="a dog running through water",
            scale=4,
            min_width=200,
            autofocus=True,
        )
        parts.find = gr.Button("Search", variant="primary", scale=0, min_width=140)
    with gr.Row():
        parts.examples = [gr.Button(words, size="sm", min_width=150) for words in EXAMPLES]
    with gr.Accordion("More ways to search", open=False):
        with gr.Row():
            # With .heic: a phone then sends such a photo as it is, and one copied from it can be chosen on a computer.
            suffixes = sorted(readable_suffixes())
            parts.upload = gr.UploadButton("Upload an example picture", file_types=suffixes, min_width=150)
            parts.forget = gr.Button("Remove the example", min_width=150)
        with gr.Row():
            parts.plus = gr.Textbox(label="What else should they show?", placeholder="0.5:snow", min_width=200)
            parts.minus = gr.Textbox(label="What should they not show?", min_width=200)
        with gr.Row():
            first, last = page.first_day, page.last_day
            parts.after = gr.Textbox(label="Taken from (year, month or day)", placeholder=first, min_width=150)
            parts.before = gr.Textbox(label="Taken before", placeholder=last, min_width=150)
            parts.under = gr.Textbox(label="In the folder, or path", placeholder="holiday/*", min_width=150)
            parts.sort = gr.Radio(["score", "date"], value="score", label="Arranged by", min_width=150)
        with gr.Row():
            parts.count = gr.Slider(1, MOST_SHOWN, DEFAULT_COUNT, step=1, label="Number of results", min_width=200)
            parts.least = gr.Slider(-1, 1, -1, step=0.01, label="Least score (-1: any)", min_width=200)
    parts.example_shown = gr.HTML()
    parts.status = gr.HTML(status_html(page.about()))
    with gr.Row():
        with gr.Column(scale=3, min_width=200):
            parts.results = gr.HTML(js_on_load=ON_CLICK)
        with gr.Column(scale=2, min_width=200, elem_id="side"):
            parts.explanation = gr.HTML(js_on_load=ON_CLICK)
    parts.link = gr.HTML()
    # Never seen: it changes where the page was opened by an address that holds a search.
    parts.opened = gr.Checkbox(visible="hidden")
    return parts


def connect(page, parts, blocks):
    """Let each click and each key ask what it should."""
    # what `page.answer` takes, and what it returns
    asked = [getattr(parts, name) for name in Asked._fields]
    answers = [getattr(parts, name) for name in Shown._fields]
    options = {"show_progress": "hidden", "concurrency_limit": 4, "concurrency_id": "search"}

    # a new search: by Enter, by the button, or because something about the question has changed
    typed = [parts.prompt, parts.plus, parts.minus, parts.after, parts.before, parts.under]
    changes = [field.submit for field in typed]
    changes += [parts.find.click, parts.count.input, parts.least.input, parts.sort.input]
    gr.on(changes, page.answer, asked, answers, api_name="search", trigger_mode="always_last", **options)
    for button in parts.examples:
        button.click(None, button, parts.prompt, js="words => words")  # in the browser: its words go into the prompt
        button.click(page.answer, [button, *asked[1:]], answers, **options)

    # an example picture comes, or goes; then the same question is asked anew
    uploaded = parts.upload.upload(page.example, parts.upload, [parts.example_shown, parts.example])
    uploaded.success(page.answer, asked, answers, **options)
    no_example = ("", None, None)  # nothing shown, no file, and nothing in the upload button
    emptied = [parts.example_shown, parts.example, parts.upload]
    forgotten = parts.forget.click(lambda: no_example, None, emptied)
    forgotten.success(page.answer, asked, answers, **options)

    # A click on a result: where does it answer the question? ON_CLICK in the browser sends its row.
    def explain(question, click: gr.EventData):
        return page.explain(question, getattr(click, "row", None))

    parts.results.select(explain, parts.question, parts.explanation, **options)

    # The address holds the search: it is read when the page opens, and written with each answer.
    fields = [getattr(parts, name) for name in IN_ADDRESS]
    blocks.load(None, None, [*fields, parts.opened], js=FROM_ADDRESS % (MOST_SHOWN, DEFAULT_COUNT))
    parts.opened.change(page.answer, asked, answers, **options)
    parts.link.change(None, parts.link, None, js=INTO_ADDRESS)


# ---------------------------------------------------------------- start


def main(flags):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the uploads are removed then, too
    checkpoint = checkpoint_dir(flags.checkpoint)
    listener = listen(flags.host, flags.port)
    host, port = listener.getsockname()[:2]
    if not is_loopback(host):
        print(
            f"WARNING: with --host {flags.host}, every machine that can reach this one sees the gallery: there is no "
            "password",
            file=sys.stderr,
        )
    with waiting_page(listener, flags.host) as tell:
        page = Page(open_gallery(checkpoint, flags, tell))
        app = as_application(page)
        tell("loading the model")
        page.warm()
    shown_host = f"[{host}]" if ":" in host else host
    print(f"http://{shown_host}:{port} shows {page.about()}\nCtrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server(app, flags.host).run([listener])


def open_gallery(checkpoint, flags, tell):
    """Return the gallery, embedded and ready for prompts; tells what it is doing."""
    gallery = Gallery(
        flags.gallery or None,
        checkpoint,
        flags.split,
        flags.device,
        InferenceConfig.batch_size,
        InferenceConfig.workers,
        progress=tell,
        trust_index=flags.trust_index,
        check=flags.check,
    )
    for line in lines_on_links(gallery.links):
        print(shown(line), file=sys.stderr)
    for line in skipped_lines(gallery.skipped)[:5]:
        print(f"skipped: {shown(line)}", file=sys.stderr)
    if gallery.unsaved:
        print(f"the index cannot be saved, so the next start embeds again: {gallery.unsaved}", file=sys.stderr)
    if not gallery.files:
        raise UserError(f"{gallery.name} holds no readable picture ({', '.join(sorted(readable_suffixes()))})")
    gallery.embedder.workers = 0  # from here on it embeds single pictures: no processes for them
    if not gallery.embedder.has_text_tower_ready and flags.device != "cuda":
        tell("making the text tower ready")
        reason = gallery.embedder.keep_text_tower()
        if reason:
            print(f"prompts take longer, for the text tower cannot be kept ready: {reason}", file=sys.stderr)
    return gallery


def as_application(page):
    """Return the page, and the pictures that it shows, as one web application."""
    app = FastAPI(openapi_url=None)
    app.get("/picture/{row}")(page.picture)
    return gr.mount_gradio_app(
        app,
        build(page),
        "/",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=STYLE,
        footer_links=[],
        max_file_size=MOST_UPLOADED,
        ssr_mode=False,
        run_history=False,
        mcp_server=False,
        show_error=False,  # but gr.Error, whose words are ours
    )


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
