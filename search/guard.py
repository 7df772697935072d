"""The guard before the web page: who may ask, and what. Whatever else is asked never reaches Gradio."""

import re
import socket

from starlette.responses import PlainTextResponse

MOST_UPLOADED = 20_000_000  # bytes of an example picture
MOST_ASKED = 65_536  # bytes of any other request

# All that the page asks for. Gradio has more doors, to files, proxies and code; they stay shut.
DOORS = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|picture/\d{1,9})?"
    r"|/(assets|static)/(?!.*\.\.)[\w./@-]+"
    r"|/gradio_api/(info|startup-events|heartbeat/\w+|queue/(join|data)|upload|upload_progress|cancel|reset)", re.ASCII)
ANSWER_HEADERS = (  # the browser itself is to load nothing from elsewhere, and to show nothing of this elsewhere
    (b"content-security-policy", b"default-src 'self' data: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)
# By these Gradio would believe that the page stands at another address, and load its scripts from there.
MISLEADING = re.compile(rb"forwarded|x-forwarded-.*|x-gradio-.*|x-direct-url", re.IGNORECASE)


def is_loopback(host):
    """Return whether an address is reached from this machine only."""
    return bool(re.fullmatch(r"localhost|::1|127(\.\d{1,3}){3}", host))


class Guard:
    """An ASGI application that passes to another one only what the page asks for: no other site's requests.

    A site that somebody visits can have the browser ask here; the header Origin tells, or Sec-Fetch-Site where a
    picture or script is asked for. It can also have its own name lead here, to be the same site (DNS rebinding); then
    Host is that name. An address in numbers is nobody's to lead.
    """

    def __init__(self, app, host):
        self.app = app
        self.host = host

    async def __call__(self, scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *ANSWER_HEADERS]
            await send(message)

        app = self.app
        if scope["type"] == "http":
            refusal = self.refusal(scope)
            if refusal:
                status, reason = refusal
                app = PlainTextResponse(f"{reason}\n", status)
            passed_on = [header for header in scope["headers"] if not MISLEADING.fullmatch(header[0])]
            scope = {**scope, "headers": passed_on}
        await app(scope, receive, send_with_headers)

    def refusal(self, scope):
        """Return the status and the reason to refuse a request with, or None."""
        headers = {}
        for name, value in scope["headers"]:
            name = name.decode("latin-1").lower()
            if name in headers and name in ("host", "origin", "sec-fetch-site"):
                return 400, "one of each header is enough"
            headers[name] = value.decode("latin-1")

        host = headers.get("host", "")
        if not self.is_ours(host):
            return 403, "this is not the address of this page"
        same_site = headers.get("sec-fetch-site", "none") in {"none", "same-origin"}
        follows_a_link = headers.get("sec-fetch-mode") == "navigate"
        if not same_site and not follows_a_link:
            return 403, "another site may not ask here"
        if "origin" in headers and headers["origin"] not in {f"http://{host}", f"https://{host}"}:
            return 403, "another site may not ask here"

        path = scope["path"]
        if not DOORS.fullmatch(path):
            return 404, "there is nothing here"

        length = headers.get("content-length", "")
        if not length and scope["method"] in {"GET", "HEAD"}:
            length = "0"
        if "transfer-encoding" in headers or not re.fullmatch(r"\d{1,18}", length):
            return 411, "say how long the request is"
        most = MOST_UPLOADED + MOST_ASKED if path.endswith("/upload") else MOST_ASKED
        if int(length) > most:
            return 413, "this is too large"
        return None

    def is_ours(self, host):
        """Return whether a Host header, NAME:PORT, names this page."""
        name = re.sub(r"(^\[|\])|:\d+$", "", host.lower())  # without brackets and port
        if is_loopback(self.host):
            return is_loopback(name)
        in_numbers = re.fullmatch(r"[\d.]+|[\da-f:.]*:[\da-f:.]*", name)
        return bool(in_numbers) or name in {"localhost", self.host.lower(), socket.gethostname().lower()}
