"""Find pictures by describing them, in the browser.

    python app.py                                             # the data trained on, at http://127.0.0.1:7860
    python app.py --gallery ~/Pictures --checkpoint runs/NAME # any folder, with any model

The address answers at once: while pictures are embedded it says how far that is. The page searches with
`inference.Gallery`, as `inference.py` does. To the browser go pictures of the gallery, reduced and without what the
camera noted in them, and never a file: `/picture/7` is number 7 of the gallery, and there is no way to name another.
A link in the gallery to a picture elsewhere shows that picture, as its owner put it there; links to folders are not
followed. Who may ask what stands in search/guard.py.
"""

from config import AppConfig, InferenceConfig, parse
from support.errors import UserError, one_line_errors

if __name__ == "__main__":
    FLAGS = parse(AppConfig)  # first of all, so that --help and a mistyped flag answer at once

import base64
import contextlib
import functools
import html
import io
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from inference import Gallery
from support.find_run import checkpoint_dir
from support.images import IMAGE_SUFFIXES, read_image

UPLOADS = tempfile.TemporaryDirectory(prefix="clip-uploads-")  # only its owner can look into it; gone at the end
UPLOADED = Path(UPLOADS.name).resolve()
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(UPLOADED)}  # before it is imported
try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI, HTTPException, Response
    from starlette.responses import HTMLResponse

    from search.guard import MOST_UPLOADED, Guard, is_loopback
except ModuleNotFoundError as error:
    with one_line_errors():
        raise UserError(f'the page needs {error.name}: type pip install -e ".[app]"') from None

EXAMPLES = "people sitting near the beach", "people walking inside the forest", "playing soccer"
MOST_SHOWN = 50  # pictures in one answer
SIDE = 512  # pixels of the longer side of a picture in the page

# ---------------------------------------------------------------- what the page says and shows


def whole(words):
    """Return words without half characters, such as in names that are not UTF-8: they cannot be sent."""
    return str(words).encode(errors="replace").decode().strip()


def text(words):
    return html.escape(whole(words))


def jpeg(pixels):
    """Return an (H, W, 3) uint8 picture as the bytes of a JPEG file of at most SIDE pixels a side."""
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def data_url(content):
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def says(*lines, kind="note"):
    return f'<div role="status">{"".join(f"<p class={kind}>{text(line)}</p>" for line in lines)}</div>'


class Page:
    """The answers of the page, in HTML, to what is typed and clicked in it."""

    def __init__(self, gallery):
        self.gallery = gallery
        self.rows = {file: row for row, file in enumerate(gallery.files)}
        self.torch = threading.Lock()  # held by whoever uses the model; prompts mostly do without
        self.reduced = functools.lru_cache(1000)(lambda file: jpeg(read_image(file, shrink_to=SIDE)))  # 40 MB or so

    def warm(self):
        """Load the model: here rather than while the page is up, for the first prompts would wait for seconds."""
        import matplotlib.pyplot  # noqa: F401 - Gradio does it at the first click, and it takes half a second

        with contextlib.suppress(UserError):
            self.gallery.search("a dog", 1, image=self.gallery.files[0])

    def about(self):
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
            content = jpeg(np.full((SIDE, SIDE, 3), 200, np.uint8))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "no-store"})  # numbers change

    def name(self, file):
        return text(file.relative_to(self.gallery.root))

    def answer(self, prompt, minus, example, count, least):
        """Return the status line, the results, no explanation, and what was asked, to be explained later."""
        start = time.perf_counter()
        prompts, minus = ([words] if words else [] for words in map(whole, (prompt or "", minus or "")))
        if not prompts and not example:
            return says("Describe a picture in a few words, or upload one to find others like it."), "", "", None
        with contextlib.nullcontext() if self.gallery.embedder.has_text_tower_ready and not example else self.torch:
            remarks = [remark for words in prompts + minus for remark in self.gallery.embedder.remarks(words)]
            try:
                found = self.gallery.search(prompts, int(count), example, minus)
            except UserError as error:
                return says(error, kind="problem"), "", "", None
        matches = [match for match in found if match.score >= least]
        if not matches:
            remarks.append(f"No picture scores {least:g} or more: the best has {found[0].score:.3f}.")
        elif prompts and not minus and not example and (remark := self.gallery.nothing_fits(matches)):
            remarks.append(remark)
        results = f'<ol class="matches">{"".join(map(self.result, matches))}</ol>' if matches else ""
        line = f"{self.about()}, {1000 * (time.perf_counter() - start):.0f} ms"
        return says(*remarks, line), results, "", (prompts, example, minus)

    def result(self, match):
        row, words = self.rows[match.file], self.name(match.file)
        words += f"<br>and {len(match.copies)} that look the same" if match.copies else ""
        return (f'<li><button type="button" data-row="{row}" title="Show what was looked at"><img src="picture/{row}" '
                f'alt=""><span><b>{match.rank}</b> {match.score:.3f}</span><span>{words}</span></button></li>')

    def example(self, file):
        """Return the uploaded picture as the page shows it, and its path, or a message in its place, and None."""
        try:
            pixels = read_image(Path(file), shrink_to=SIDE)
        except OSError as error:
            reason = str(error).removeprefix(f"{file}: ")
            return says(f"{Path(file).name} cannot be used as an example: {reason}", kind="problem"), None
        return (f'<figure class="example"><img src="{data_url(jpeg(pixels))}" alt=""><figcaption>pictures like '
                f"{text(Path(file).name)}</figcaption></figure>"), file

    def explain(self, asked, row):
        """Return one result with a picture of where in it the model found what was asked."""
        if not asked or not isinstance(row, int) or not 0 <= row < len(self.gallery.files):
            return ""
        (prompts, example, minus), file = asked, self.gallery.files[row]
        try:
            with self.torch:
                overlay = self.gallery.explain(file, prompts, example, minus)
            source, words = data_url(jpeg(overlay)), "Red marks what answers, in "
        except (UserError, OSError) as error:
            reason = error if isinstance(error, UserError) else "the file is gone or damaged by now"
            source, words = f"picture/{row}", f"{text(reason)}: "
        return (f'<figure><img src="{source}" alt=""><figcaption role="status">{words}{self.name(file)}</figcaption>'
                '<button type="button">Close</button></figure>')


LOOK = """
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
ON_CLICK = """element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.row) trigger("select", {row: Number(button.dataset.row)});
  else if (button) props.value = "";
})"""


class Blocks(gr.Blocks):
    """Gradio's Blocks, but a request can have no file opened, and no address, except what was uploaded."""

    async def preprocess_data(self, block_fn, inputs, *rest, **more):
        try:
            asked = list(inputs)
            for value in asked:  # grows as dictionaries and lists are taken apart
                asked += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
                path = value.get("path") if isinstance(value, dict) else None
                if path and UPLOADED not in Path(os.path.realpath(str(path))).parents:
                    raise gr.Error("this was not uploaded")
                if isinstance(value, float) and not math.isfinite(value):
                    raise gr.Error(f"{value} is not a number to search with")
            return await super().preprocess_data(block_fn, inputs, *rest, **more)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception:  # Gradio and pydantic have their own for each thing that only a forged request holds
            raise gr.Error("this page does not ask that", print_exception=False) from None


def build(page):
    """Return the page as Gradio's Blocks: what stands where, and which click asks what."""
    with Blocks(title="Find pictures", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        asked, example_file = gr.State(), gr.State()
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(label="What should the pictures show?", placeholder="a dog running through water",
                                scale=4, min_width=200, autofocus=True)
            find = gr.Button("Search", variant="primary", scale=0, min_width=140)
        with gr.Row():
            examples = [gr.Button(words, size="sm", min_width=150) for words in EXAMPLES]
        with gr.Accordion("More ways to search", open=False):
            with gr.Row():
                suffixes = sorted(IMAGE_SUFFIXES - {".heic"})  # so that a phone converts what it has in that format
                upload = gr.UploadButton("Upload an example picture", file_types=suffixes, min_width=150)
                forget = gr.Button("Remove the example", min_width=150)
            with gr.Row():
                minus = gr.Textbox(label="What should they not show?", min_width=200)
                count = gr.Slider(1, MOST_SHOWN, 9, step=1, label="Number of results", min_width=200)
                least = gr.Slider(-1, 1, -1, step=0.01, label="Least score (-1: any)", min_width=200)
        example = gr.HTML()
        status = gr.HTML(says(page.about()))
        with gr.Row():
            with gr.Column(scale=3, min_width=200):
                results = gr.HTML(js_on_load=ON_CLICK)
            with gr.Column(scale=2, min_width=200, elem_id="side"):
                explanation = gr.HTML(js_on_load=ON_CLICK)

        asking, answers = [minus, example_file, count, least], [status, results, explanation, asked]
        options = {"show_progress": "hidden", "concurrency_limit": 4, "concurrency_id": "search"}

        def explain(asked, click: gr.EventData):
            return page.explain(asked, getattr(click, "row", None))

        gr.on([prompt.submit, find.click, minus.submit, count.change, least.change], page.answer, [prompt, *asking],
              answers, api_name="search", trigger_mode="always_last", **options)
        for button in examples:
            button.click(None, button, prompt, js="words => words")
            button.click(page.answer, [button, *asking], answers, **options)
        uploaded = upload.upload(page.example, upload, [example, example_file])
        forgotten = forget.click(lambda: ("", None, None), None, [example, example_file, upload])
        for event in (uploaded, forgotten):
            event.success(page.answer, [prompt, *asking], answers, **options)
        results.select(explain, asked, explanation, **options)
    return blocks.queue(max_size=256)


# ---------------------------------------------------------------- start


def server(app, host):
    """Return a web server for an ASGI application behind the `Guard`."""
    return uvicorn.Server(uvicorn.Config(Guard(app, host), log_level="warning", server_header=False, access_log=False,
                                         proxy_headers=False, http="h11", ws="none", timeout_graceful_shutdown=2))


def listen(host, port):
    """Return a socket that listens there, or raise a `UserError`."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; --port 0 takes any that is free") from None


@contextlib.contextmanager
def waiting_page(listener, host):
    """Answer with how far the work inside the `with` is; yields the function to tell that to."""
    doing = ["reading the gallery"]

    async def wait(scope, receive, send):
        body = f"""<!doctype html><html lang="en"><meta http-equiv="refresh" content="1">
            <meta name="viewport" content="width=device-width"><title>One moment</title>
            <body style="font-family: system-ui; margin: 2em"><p role="status">One moment: {text(doing[0])}."""
        await HTMLResponse(body, 503)(scope, receive, send)

    waiting = server(wait, host)
    waiting.config.lifespan = "off"
    thread = threading.Thread(target=waiting.run, args=([listener.dup()],), daemon=True)
    thread.start()
    try:
        yield functools.partial(doing.__setitem__, 0)
    finally:
        waiting.should_exit = True
        thread.join()


def open_gallery(flags, checkpoint, tell):
    """Return the gallery, embedded and ready for prompts; tells what it is doing."""

    gallery = Gallery(flags.gallery, checkpoint, flags.split, flags.device, InferenceConfig.batch_size,
                      InferenceConfig.workers, progress=tell)
    if not gallery.files:
        raise UserError(f"{gallery.name} holds no readable picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    gallery.embedder.workers = 0  # from here on it embeds single pictures: no processes for them
    if not gallery.embedder.has_text_tower_ready and flags.device != "cuda":
        tell("making the text tower ready")
        gallery.embedder.keep_text_tower()
    return gallery


def main(flags):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the uploads are removed then, too
    checkpoint = checkpoint_dir(flags.checkpoint)
    listener = listen(flags.host, flags.port)
    host, port = listener.getsockname()[:2]
    if not is_loopback(host):
        print(f"WARNING: with --host {flags.host}, every machine that can reach this one sees the gallery: there is no "
              "password", file=sys.stderr)
    with waiting_page(listener, flags.host) as tell:
        page = Page(open_gallery(flags, checkpoint, tell))
        app = FastAPI(openapi_url=None)
        app.get("/picture/{row}")(page.picture)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
        app = gr.mount_gradio_app(app, build(page), "/", theme=gr.themes.Default(**fonts), css=LOOK, footer_links=[],
                                  max_file_size=MOST_UPLOADED, ssr_mode=False, run_history=False, mcp_server=False,
                                  show_error=False)  # but gr.Error, whose words are ours
        tell("loading the model")
        page.warm()
    print(f"http://{f'[{host}]' if ':' in host else host}:{port} shows {page.about()}", flush=True)
    server(app, flags.host).run([listener])


if __name__ == "__main__":
    with one_line_errors(), contextlib.suppress(KeyboardInterrupt):
        main(FLAGS)
