"""The page as a server: who is listened to, what a request may name, and what is answered while it gets ready."""

import contextlib
import functools
import math
import os
import socket
import threading
from pathlib import Path

from search.uploads import UPLOADED  # before Gradio, which is told by it where uploads go

# isort: split

import gradio as gr
import uvicorn
from starlette.responses import HTMLResponse

from search.guard import Guard
from search.markup import escaped
from support.errors import UserError


class GuardedBlocks(gr.Blocks):
    """Gradio's Blocks, but a request can have no file opened, and no address, except what was uploaded."""

    async def preprocess_data(self, block_fn, inputs, *rest, **more):
        try:
            refuse_forged(inputs)
            return await super().preprocess_data(block_fn, inputs, *rest, **more)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception:  # Gradio and pydantic have their own for each thing that only a forged request holds
            raise gr.Error("this page does not ask that", print_exception=False) from None


def refuse_forged(inputs):
    """Raise gr.Error for inputs that hold the path of a file that was not uploaded, or a number that is none."""
    to_check = list(inputs)
    for value in to_check:  # grows as dictionaries and lists are taken apart
        if isinstance(value, dict):
            to_check += value.values()
            path = value.get("path")
            if path and UPLOADED not in Path(os.path.realpath(str(path))).parents:
                raise gr.Error("this was not uploaded")
        elif isinstance(value, list):
            to_check += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise gr.Error(f"{value} is not a number to search with")


def server(app, host):
    """Return a web server for an ASGI application behind the `Guard`."""
    settings = uvicorn.Config(
        Guard(app, host),
        log_level="warning",
        server_header=False,
        access_log=False,
        proxy_headers=False,
        http="h11",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(settings)


def listen(host, port):
    """Return a socket that listens there, or raise a `UserError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; --port 0 takes any that is free") from None


@contextlib.contextmanager
def waiting_page(listener, host):
    """Answer with how far the work inside the `with` is; yields the function to tell that to."""
    doing = ["reading the gallery"]

    async def wait(scope, receive, send):
        body = f"""<!doctype html><html lang="en"><meta http-equiv="refresh" content="1">
            <meta name="viewport" content="width=device-width"><title>One moment</title>
            <body style="font-family: system-ui; margin: 2em"><p role="status">One moment: {escaped(doing[0])}."""
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
