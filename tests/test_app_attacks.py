"""app.py, attacked: over loopback, in ways in which a browser at the page never asks."""

import contextlib
import json
import os
import shutil
import socket
import struct
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pytest
from PIL import Image
from test_app import CHROMIUM, QUIET, get, running_app, sync_api

SECRET = "what no request may ever see"
# What the page sends for a search: prompt, minus, state, count and least, and then plus, under, after, before and sort.
REST = ["", "", "", "", "score"]
SEARCH = ["a dog", "", None, 9, -1, *REST]


@pytest.fixture(scope="module")
def place(tmp_path_factory, sample_dir):
    """A folder with pictures/, the gallery: one with words in it, links to outside; and secret files beside it."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("pictures", "elsewhere", "uploads", "programs"):
        (place / folder).mkdir()
    for name in ("secret.txt", "elsewhere/secret.jpg", "pictures/notes.txt"):
        (place / name).write_text(SECRET)
    sources = sorted((sample_dir / "Images").iterdir())
    for number in range(5):
        shutil.copy(sources[number], place / "pictures" / f"{number}.jpg")
    with Image.open(sources[5]) as picture:
        notes = picture.getexif()
        notes[0x010E] = SECRET  # the description
        picture.save(place / "pictures" / "words.jpg", exif=notes, comment=f"<script>{SECRET}</script>".encode())
    shutil.copy(sources[6], place / "elsewhere" / "linked.jpg")
    (place / "pictures" / "to-picture.jpg").symlink_to(place / "elsewhere" / "linked.jpg")
    (place / "pictures" / "to-secret.jpg").symlink_to(place / "secret.txt")
    (place / "pictures" / "to-folder").symlink_to(place / "elsewhere")
    ghostscript = place / "programs" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {place}/ghostscript-ran\n")
    ghostscript.chmod(0o755)
    return place


@pytest.fixture(scope="module")
def address(place, checkpoint):
    """The address of app.py with that gallery; nothing that is tried may end it, or change a file of another folder."""
    before = {path: path.stat().st_size for path in place.rglob("*") if path.is_file() and "uploads" not in path.parts}
    programs = f"{place / 'programs'}{os.pathsep}{os.environ['PATH']}"
    with running_app(place / "pictures", checkpoint, TMPDIR=str(place / "uploads"), PATH=programs) as (address, said):
        assert "7 pictures" in said and "1 more cannot be read" in said
        yield address
    after = {path: path.stat().st_size for path in place.rglob("*") if path.is_file() and "uploads" not in path.parts}
    assert {path.name for path in after.keys() ^ before.keys()} <= {".clip-index.safetensors"}
    assert all(after[path] == size for path, size in before.items())
    assert list((place / "uploads").glob("clip-uploads-*")) == []  # what was uploaded went with the app


def raw(address, request):
    """Send bytes; return the status, 0 where the connection is closed without one, and the whole answer."""
    name, port = urlsplit(address).netloc.split(":")
    with socket.create_connection((name, int(port)), timeout=20) as connection, contextlib.suppress(ConnectionError):
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(request.replace(b"HOST", f"Host: {name}:{port}".encode()))
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    return int(answer.split()[1]) if answer else 0, answer


def ask(address, number=0, data=SEARCH, **more):
    """Join the queue as the page does; return the status, and what is answered for the event."""
    body = {"fn_index": number, "data": data, "session_hash": uuid.uuid4().hex, **more}
    sent = json.dumps(body)
    status, content = get(address, "/gradio_api/queue/join", "POST", sent, **{"Content-Type": "application/json"})
    if status != 200:
        return status, content.decode()
    events = get(address, f"/gradio_api/queue/data?session_hash={body['session_hash']}")[1].decode()
    return 200, next(line for line in events.splitlines() if "process_completed" in line)


def upload(address, content, name="example.jpg"):
    """Upload bytes under a file name; return the status and the paths that the app says it has."""
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n'
    body = head + b"Content-Type: image/jpeg\r\n\r\n" + content + b"\r\n--edge--\r\n"
    status, answer = get(address, "/gradio_api/upload", "POST", body,
                         **{"Content-Type": "multipart/form-data; boundary=edge"})
    return status, json.loads(answer) if status == 200 else answer


def example(address, path, **more):
    return ask(address, 7, [{"path": path, "meta": {"_type": "gradio.FileData"}, **more}])[1]


def rows(address):
    """The numbers of the pictures of the gallery by file name, as a search shows them."""
    items = ask(address)[1].split('data-row=\\"')[1:]
    return {item.split("</span><span>")[1].split("<")[0]: int(item.split("\\")[0]) for item in items}


# ---------------------------------------------------------------- files

INSIDE = ["..", "%2e%2e", "%252e%252e", "..%2f", "..%5c", "..\\", "%c0%ae%c0%ae", "....//", ".%00.", "%2e%2e%2f"]
STARTS = ["/assets/", "/static/", "/picture/", "/gradio_api/file=", "/file=", "/gradio_api/upload/", "/theme.css/", "/"]
WHOLE = ["/gradio_api/file=/etc/passwd", "/gradio_api/file=%252Fetc%252Fpasswd", "/gradio_api/file/etc/passwd",
         "/file=C:\\windows\\win.ini", "/gradio_api/file=file:///etc/passwd", "/gradio_api/stream/x/y/0/playlist.m3u8",
         "/gradio_api/proxy=http://127.0.0.1:1/", "/proxy=file:///etc/passwd", "/static//etc/passwd",
         "/assets//etc/passwd",
         "/static/%2fetc%2fpasswd", "/custom_component/x/y/z/a", "/gradio_api/call/search", "/gradio_api/api/search",
         "/gradio_api/run/search", "/gradio_api/component_server", "/gradio_api/vibe-code/", "/gradio_api/dev/reload",
         "/gradio_api/deep_link?session_hash=x", "/gradio_api/mcp/sse", "/gradio_api/queue/status", "/login", "/token",
         "/monitoring", "/openapi.json", "/redoc", "/svelte/x", "/robots.txt", "/.git/config", "/%00", "/picture/%00"]


def test_no_way_to_write_a_path_leads_to_a_file(address):
    paths = WHOLE + [f"{start}{(inside + '/') * 8}{name}" for start in STARTS for inside in INSIDE
                     for name in ("etc/passwd", "secret.txt")]
    for path in paths:
        for request in (path, f"http://127.0.0.1{path}"):  # a path, and an address as proxies write it
            status, answer = raw(address, f"GET {request} HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n".encode())
            assert status in (400, 403, 404) and b"root:" not in answer and SECRET.encode() not in answer, path
    assert len(paths) > 190


def test_pictures_are_asked_for_by_the_numbers_that_there_are(address):
    assert [get(address, f"/picture/{row}")[0] for row in range(9)] == [200] * 7 + [404] * 2
    for row in ("-1", "7", "999999999", "9999999999", "1e0", "1.0", "0x1", "+1", "%201", "1/", "%D9%A3", "a", ""):
        assert get(address, f"/picture/{row}")[0] == 404, row
    for method in ("PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "NONSENSE"):
        for path in ("/", "/picture/1", "/gradio_api/queue/data"):
            status, answer = get(address, path, method, b"")
            assert status in (404, 405) and len(answer) < 100, (method, path)


def test_a_linked_picture_is_shown_and_nothing_else_behind_a_link(address, place):
    shown = rows(address)
    assert set(shown) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "words.jpg", "to-picture.jpg"}
    linked = get(address, f"/picture/{shown['to-picture.jpg']}")[1]
    try:  # a picture that becomes a link to something else by the time it is shown
        (place / "pictures" / "4.jpg").rename(place / "uploads" / "4.jpg")
        (place / "pictures" / "4.jpg").symlink_to(place / "secret.txt")
        status, grey = get(address, f"/picture/{shown['4.jpg']}")
    finally:
        (place / "uploads" / "4.jpg").replace(place / "pictures" / "4.jpg")
    assert linked.startswith(b"\xff\xd8") and status == 200 and SECRET.encode() not in grey


def test_words_inside_a_picture_stay_at_home(address, place):
    assert SECRET.encode() in (place / "pictures" / "words.jpg").read_bytes()
    for row in range(7):
        assert SECRET.encode() not in get(address, f"/picture/{row}")[1]


# ---------------------------------------------------------------- uploads


@pytest.mark.parametrize("name", ["../../../pictures/0.jpg", "..%2f..%2fx.jpg", "/etc/x.jpg", "..\\..\\x.jpg",
                                  "a\0b.jpg", ".jpg", "x" * 5000 + ".jpg", "COM1.jpg", "",
                                  "<img src=x onerror=alert(1)>.jpg"])
def test_an_upload_lies_where_uploads_lie_whatever_its_name(address, place, name):
    status, answer = upload(address, (place / "pictures" / "1.jpg").read_bytes(), name)
    assert status in (200, 400, 413, 422, 500)
    if status == 200:
        (path,) = answer
        assert str(place / "uploads") in os.path.realpath(path) and ".." not in path.split("/")
        shown = example(address, path)
        assert "<img src=x" not in shown and ("data:image/jpeg" in shown or "Invalid file type" in shown)
    assert get(address, "/picture/0")[0] == 200


def bomb(side):
    """A PNG of a few hundred bytes that says that it is side x side pixels."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("content, reason", [
    (bomb(20_000), "are more than 100,000,000"), (bomb(2**31 - 1), "are more than 100,000,000"),
    (bomb(500), "truncated"),
    (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not a picture"),
    (b"GIF89a/*<script>alert(1)</script>*/", "cannot be used"), (b"<script>alert(1)</script>", "not a picture"),
    (EPS, "not a picture"), (b"#!/bin/sh\n", "not a picture"), (b"", "not a picture"),
    (b"\x1f\x8b\x08" * 99, "not a picture"),
], ids=["bomb", "large bomb", "cut", "svg", "gif", "html", "eps", "script", "empty", "gzip"])
def test_an_upload_that_is_no_picture_is_one_line(address, place, content, reason):
    status, (path,) = upload(address, content)
    answer = json.loads(example(address, path)[6:])["output"]["data"][0]
    assert status == 200 and "cannot be used as an example" in answer and reason in answer
    assert "<script" not in answer and "Traceback" not in answer and str(place) not in answer
    assert not (place / "ghostscript-ran").exists()


def test_a_picture_that_is_a_script_too_comes_back_as_a_picture(address, place):
    _, (path,) = upload(address, (place / "pictures" / "0.jpg").read_bytes() + f"<script>{SECRET}</script>".encode())
    answer = example(address, path)
    assert "data:image/jpeg;base64," in answer and "<script" not in answer


def test_a_request_has_a_length_that_is_said_and_small(address):
    head = b" HTTP/1.1\r\nHOST\r\nConnection: close\r\n"
    join, sent = b"POST /gradio_api/queue/join" + head, b"5\r\nhello\r\n0\r\n\r\n"
    for status, request in {
        (411, join + b"Transfer-Encoding: chunked\r\n\r\n" + sent),
        (411, join + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + sent),
        (411, b"POST /gradio_api/upload" + head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + sent),
        (411, b"GET /config" + head + b"Transfer-Encoding: chunked\r\n\r\n" + sent), (411, join + b"\r\n"),
        (413, b"GET /config" + head + b"Content-Length: 99999999\r\n\r\n"),
        (413, join + b"Content-Length: 65537\r\n\r\n"),
        (413, b"POST /gradio_api/upload" + head + b"Content-Length: 20065537\r\n\r\n"),
        (400, join + b"Content-Length: -1\r\n\r\n"), (400, join + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        (400, b"GET /config" + head + b"X: " + b"a" * 200_000 + b"\r\n\r\n"),
        (400, b"GET /" + b"a" * 200_000 + head + b"\r\n"),
        (400, b"GET /config" + head + b"X: a\r\n" * 200_000 + b"\r\n"), (400, b"\x16\x03\x01\x02\0" * 20 + b"\r\n\r\n"),
    }:
        answered, _ = raw(address, request)
        assert answered in (status, 0), request[:80]  # 0: the connection is closed while more is still being sent
    assert get(address)[0] == 200


# ---------------------------------------------------------------- forged requests


def file(**more):
    return {"meta": {"_type": "gradio.FileData"}, **more}


@pytest.mark.parametrize("number, data", [
    *[(7, [value]) for value in (
        file(path="/etc/passwd"), file(path="{place}/secret.txt"), file(path="{place}/pictures/0.jpg"),
        file(path="{place}/uploads/../secret.txt"), file(path="file:///etc/passwd"), file(path="http://127.0.0.1:1/a.jpg"),
        file(path=["/etc/passwd"]), file(path={"path": "/etc/passwd"}),
        file(path="/proc/self/environ"), file(path="a\0b"),
        file(path="\ud800"), file(path="", url="file:///etc/passwd"), file(path=None, url="http://127.0.0.1:1/a"),
        [file(path="/etc/passwd")], {"path": "/etc/passwd"}, "/etc/passwd", ["/etc/passwd"], 7)],
    *[(0, ["a dog", "", None, count, -1, *REST])
      for count in (0, -1, 51, 10**30, "9", None, [9], float("nan"), float("inf"))],
    *[(0, ["a dog", "", None, 9, least, *REST]) for least in ("x", None, {}, float("nan"))],
    *[(0, [*SEARCH[:-1], sort]) for sort in ("x", ["date"], {"path": "/etc/passwd"})],
    (0, []), (0, SEARCH[:5]), (0, [file(path="/etc/passwd"), *SEARCH[1:]]), (1, ["x"]), (11, [None]),
])
def test_what_only_a_forger_sends_is_one_line(address, place, number, data):
    data = json.loads(json.dumps(data).replace("{place}", str(place)))
    status, answer = ask(address, number, data)
    output = json.loads(answer[6:])["output"]
    assert status == 200 and "root:" not in answer and SECRET not in answer and "data:image" not in answer
    if "error" in output:
        words = output["error"] or "Error"  # without words where the fault is Gradio's own to tell
        assert "\n" not in words and "0x" not in words and len(words) < 100
    else:
        assert number == 7 and "cannot be used as an example" in answer


def test_state_is_not_the_visitors_to_send(address, place):
    secret = str(place / "pictures" / "0.jpg")
    answer = ask(address, data=["", "", secret, 9, -1, *REST])[1]
    assert "Describe a picture in a few words" in answer  # the forged example was not looked at
    for row in (0, -1, 10**9, "0", True, None, [0], {"row": 0}):
        answer = ask(address, 11, [[["a dog"], secret, []]], event_data={"row": row})[1]
        assert json.loads(answer[6:])["output"]["data"] == [""]


def test_hidden_functions_and_odd_sessions_are_refused_or_nothing(address):
    for more in ({"fn_index": 99}, {"fn_index": -1}, {"fn_index": "x"}, {"fn_index": None}, {"session_hash": 5},
                 {"data": "x"}, {"data": {}}, {"trigger_id": "x"}, {"fn_index": None, "api_name": "lambda"}):
        status, answer = ask(address, **more)
        assert status in (400, 422, 500) and "Traceback" not in answer and "site-packages" not in answer
    deep = b"[" * 60_000
    json_header = {"Content-Type": "application/json"}
    assert get(address, "/gradio_api/queue/join", "POST", deep, **json_header)[0] in (400, 422, 500)
    assert ask(address, session_hash="../../secret.txt")[0] == 200  # a name like any other
    assert '"success":true' in ask(address)[1]


# ---------------------------------------------------------------- other sites


@pytest.mark.parametrize("status, lines", [
    (400, "HOST\r\nHost: example.com"), (400, "Host: example.com\r\nHOST"), (400, "X: no host"), (403, "Host: "),
    (403, "Host: example.com"), (403, "Host: 127.0.0.1.example.com"), (403, "Host: 127.0.0.1@example.com"),
    (403, "Host: localhost.example.com"), (403, "Host: 0.0.0.0"), (403, "Host: 2130706433"),
    (403, "Host: [::ffff:8.8.8.8]"), (403, "Host: example.com:{port}"),
    (403, "HOST\r\nOrigin: null"), (403, "HOST\r\nOrigin: http://example.com"),
    (403, "HOST\r\nOrigin: http://127.0.0.1:1"), (403, "HOST\r\nOrigin: "), (403, "HOST\r\nOrigin: file://"),
    (403, "HOST\r\nOrigin: http://127.0.0.1.example.com"), (403, "HOST\r\nOrigin: http://localhost:{port}"),
    (400, "HOST\r\nOrigin: http://example.com\r\nOrigin: http://127.0.0.1:{port}"),
    (403, "HOST\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors"),
    (403, "HOST\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors"), (200, "HOST\r\nOrigin: http://127.0.0.1:{port}"),
    (200, "HOST\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate"), (200, "Host: LocalHost:{port}"),
])
def test_foreign_hosts_and_origins_are_refused(address, status, lines):
    lines = lines.replace("{port}", str(urlsplit(address).port))
    for path in ("/", "/config", "/picture/0"):
        request = f"GET {path} HTTP/1.1\r\n{lines}\r\nConnection: close\r\n\r\n".encode()
        assert raw(address, request)[0] == status


@pytest.mark.parametrize("header", ["X-Forwarded-Host", "X-Gradio-Server", "Forwarded", "X-Forwarded-For"])
def test_the_page_does_not_believe_that_it_stands_elsewhere(address, header):
    for value in ("http://evil.example", "evil.example", "host=evil.example"):
        assert b"evil.example" not in get(address, **{header: value})[1] + get(address, "/config", **{header: value})[1]


def test_another_site_in_the_browser_sees_nothing_of_it(address):
    """A page of another site asks in every way that a page can, also by a name of its own for 127.0.0.1."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    html = """<body><script>
      const tried = [["read", () => fetch("APP/config").then(answer => answer.text())],
        ["sent", () => fetch("APP/gradio_api/queue/join", {method: "POST", body: "{}"}).then(answer => answer.text())],
        ...["img", "script", "iframe"].map(kind => [kind, () => new Promise((loaded, failed) => {
          const element = document.createElement(kind); element.onload = loaded; element.onerror = failed;
          element.src = kind == "img" ? "APP/picture/0" : "APP/config"; document.body.append(element);
          if (kind == "iframe") element.onload = () => element.contentDocument ? loaded() : failed(); })])];
      Promise.all(tried.map(([name, way]) => way().then(() => name, () => "")))
        .then(reached => { document.title = "reached " + reached.join(""); });</script>"""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.replace("APP", address).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site, sync_api.sync_playwright() as playwright:
        Thread(target=site.serve_forever, daemon=True).start()
        names = "--host-resolver-rules=MAP other.example 127.0.0.1"
        with playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, names]) as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{site.server_port}")
            page.wait_for_function("document.title.startsWith('reached')")
            assert page.title().strip() == "reached"
            answer = page.goto(f"http://other.example:{urlsplit(address).port}")  # DNS rebinding
            assert answer.status == 403 and "not the address" in page.content()
        site.shutdown()


# ---------------------------------------------------------------- many at once


def test_64_searches_at_once_are_all_answered_alike(address):
    prompts = [f"a dog {number % 4}" for number in range(64)]

    def shown(prompt):
        status, answer = ask(address, data=[prompt, *SEARCH[1:]])
        return status, json.loads(answer[6:])["output"]["data"][1]

    alone = {prompt: shown(prompt) for prompt in set(prompts)}
    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(shown, prompts)) == [alone[prompt] for prompt in prompts]
    assert all(status == 200 and found.count("<li>") == 7 for status, found in alone.values())


def test_clients_that_never_finish_keep_nobody_waiting(address):
    name, port = urlsplit(address).netloc.split(":")
    with contextlib.ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(socket.create_connection((name, int(port)), timeout=20))
            connection.sendall((b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"POST /gradio_api/upload HTTP/1.1\r\n"
                                b"Host: 127.0.0.1\r\nContent-Length: 9999\r\n\r\nab")[number % 2])
        assert '"success":true' in ask(address)[1]


def test_a_browser_may_load_and_show_nothing_elsewhere(address):
    shown = raw(address, b"HEAD / HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n")[1].decode().lower()
    for words in ("frame-ancestors 'none'", "default-src 'self'", "resource-policy: same-origin", "nosniff"):
        assert words in shown
    assert "access-control-allow-origin" not in shown and "server: " not in shown
