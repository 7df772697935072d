"""app.py: driven as a person would, in a real browser; and what it refuses to those who are not at the page."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, run_script, with_flags
from PIL import Image

pytest.importorskip("gradio", reason='the page needs Gradio: pip install -e ".[app]"')
sync_api = pytest.importorskip("playwright.sync_api", reason='these tests need Playwright: pip install -e ".[dev]"')
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
READY = "document.querySelector('[role=status]')?.innerText"  # what is clicked before that is lost
PROMPT, MINUS = "What should the pictures show?", "What should they not show?"


@pytest.fixture(scope="module")
def photos(sample_dir, checkpoint, tmp_path_factory):
    """The 16 test pictures as a gallery of files: one with a name full of HTML, one that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for file in json.loads(run_script("inference.py", "--query", "a dog", "--checkpoint", checkpoint, "--json",
                                      "--no-picture", "--top-k", 16, cwd=folder).stdout)["matches"]:
        shutil.copy2(file["file"], folder)
    first = min(folder.glob("*.jpg"))
    first.rename(first.with_name("<b onmouseover=alert(1)>&${value}{{#if}.jpg"))
    (folder / "broken.jpg").write_text("not a picture")
    return folder


@contextlib.contextmanager
def running_app(gallery, checkpoint, *flags, **environment):
    """Run app.py, whose page says how far it is until it is ready; gives its address, and the line that says so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "app.py", "--checkpoint", checkpoint, "--gallery", gallery, "--port", port]
    command = list(map(str, [*command, *flags]))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=gallery.parent,
                               env={**os.environ, **environment})
    try:
        status, content = None, b""
        while status is None and process.poll() is None:
            with contextlib.suppress(ConnectionError):
                status, content = get(f"http://127.0.0.1:{port}")
        assert status == 503 and b"One moment: " in content
        yield f"http://127.0.0.1:{port}", process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()  # where a test has failed


@pytest.fixture(scope="module")
def address(photos, checkpoint):
    """The address of a running app.py."""
    with running_app(photos, checkpoint) as (address, said):
        assert said == f"{address} shows {checkpoint} on 16 pictures of {photos}, 1 more cannot be read\n"
        yield address


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as chromium:
            yield chromium


@pytest.fixture
def page(browser, address):
    """The page, open and wide; it must ask no other machine, and nothing it runs may fail."""
    asked, faults = [], []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(address)
        page.wait_for_function(READY)
        yield page
    assert faults == []
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {urlsplit(address).netloc}


def names(page):
    """The file names of the results that are shown."""
    return [words.split("\n")[0] for words in page.locator(".matches li button > span:last-child").all_inner_texts()]


def fill(page, box, words):
    """Type until the words stay: while fields unfold, Gradio sets each of them again, and a robot is faster."""
    for _ in range(20):
        box.fill(words)
        page.wait_for_timeout(300)
        if box.input_value() == words:
            return
    raise AssertionError(f"{words} does not stay")


def set_number(page, label, number):
    fill(page, page.get_by_role("spinbutton", name=label), number)


def ask(page, words, label=PROMPT):
    """Type into a box, press Enter, and return the names of the new results."""
    page.evaluate("document.querySelector('.matches')?.remove()")
    box = page.get_by_label(label)
    fill(page, box, words)
    box.press("Enter")
    page.locator(".matches").wait_for()
    return names(page)


def command_line(photos, checkpoint, *flags):
    process = run_script("inference.py", "--gallery", photos, "--checkpoint", checkpoint, "--json", "--no-picture",
                         *flags, cwd=photos.parent)
    return [os.path.basename(match["file"]) for match in json.loads(process.stdout)["matches"]]


# ---------------------------------------------------------------- in the browser


def test_enter_shows_the_nine_pictures_that_the_command_ranks_first(page, photos, checkpoint):
    found = ask(page, "a dog running on the grass")
    assert len(found) == 9 and found == command_line(photos, checkpoint, "--query", "a dog running on the grass")
    page.wait_for_function("[...document.querySelectorAll('.matches img')].every(image => image.naturalWidth > 1)")
    status = page.get_by_role("status").first.inner_text()
    assert str(checkpoint) in status and "16 pictures" in status and status.rstrip().endswith("ms")
    positions = page.locator(".matches li").evaluate_all("items => items.map(item => item.getBoundingClientRect().top)")
    assert len(set(positions)) == 3  # three across


def test_a_page_that_is_opened_without_a_search_asks_nothing(page, address):
    """An answer to nothing came, on a slow machine, after the first prompt, and wiped it and its pictures away."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function(READY)
    page.wait_for_timeout(1000)
    assert asked and not [url for url in asked if "queue" in url]


def test_an_example_button_fills_in_its_prompt(page, photos, checkpoint):
    page.get_by_role("button", name="playing soccer").click()
    page.locator(".matches").wait_for()
    assert page.get_by_label(PROMPT).input_value() == "playing soccer"
    assert names(page) == command_line(photos, checkpoint, "--query", "playing soccer")


def test_an_uploaded_picture_finds_itself_and_can_be_taken_back(page, photos):
    file = sorted(photos.glob("scene*.jpg"))[3]
    page.get_by_text("More ways to search").click()
    page.locator("input[type=file]").set_input_files(file)
    page.locator(".matches").wait_for()
    assert names(page)[0] == file.name and "pictures like" in page.locator(".example").inner_text()
    page.get_by_role("button", name="Remove the example").click()
    page.get_by_text("Describe a picture in a few words").wait_for()


@pytest.mark.parametrize("name, content", [("notes.txt", b"words"), ("notes.jpg", b"words"), ("half.jpg", None)])
def test_what_is_no_picture_is_refused_in_words(page, photos, tmp_path, name, content):
    (tmp_path / name).write_bytes(content or next(photos.glob("scene*.jpg")).read_bytes()[:500])
    page.get_by_text("More ways to search").click()
    page.locator("input[type=file]").set_input_files(tmp_path / name)
    page.get_by_text("cannot be used as an example" if name.endswith("jpg") else "invalid file type").first.wait_for()
    assert page.locator(".matches").count() == 0


def test_threshold_number_and_minus_change_the_results(page, photos, checkpoint):
    ask(page, "a dog")
    before = page.locator(".matches").inner_text()
    page.get_by_text("More ways to search").click()
    assert ask(page, "snow", MINUS) == command_line(photos, checkpoint, "--query", "a dog", "--minus", "snow")
    assert page.locator(".matches").inner_text() != before  # the scores at least
    set_number(page, "Number of results", "4")
    page.wait_for_function("document.querySelectorAll('.matches li').length == 4")
    set_number(page, "Least score", "1")
    page.get_by_text("no picture scores 1 or more: the best is").wait_for()
    assert page.locator(".matches").count() == 0


def test_html_in_prompts_and_names_is_text(page):
    ask(page, "<script>alert(1)</script><img src=x onerror=alert(1)>")
    page.get_by_text("More ways to search").click()
    set_number(page, "Number of results", "16")
    page.wait_for_function("document.querySelectorAll('.matches li').length == 16")
    assert "<b onmouseover=alert(1)>&${value}{{#if}.jpg" in names(page)
    assert page.locator("[onmouseover], [onerror]").count() == 0


def test_a_click_shows_what_in_the_picture_answers(page):
    ask(page, "a dog")
    button = page.locator(".matches button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#side figure").wait_for()
    assert names(page)[1] in page.locator("#side").inner_text()
    page.get_by_role("button", name="Close").click()
    page.locator("#side figure").wait_for(state="detached")


def test_a_phone_shows_one_column_and_scrolls_down_only(page):
    page.set_viewport_size({"width": 375, "height": 812})
    ask(page, "a dog")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    positions = page.locator(".matches li").evaluate_all("items => items.map(item => item.getBoundingClientRect().top)")
    assert len(set(positions)) == 9


def test_the_keyboard_is_enough_and_every_field_has_a_name(page):
    page.get_by_text("More ways to search").click()
    page.get_by_role("spinbutton", name="Least score").wait_for()
    reached = set()
    for _ in range(35):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.labels?.[0]?.innerText "
                                  "|| document.activeElement.innerText"))
    for name in (MINUS, "playing soccer", "Search", "Upload an example picture", "Number of results", "Least score",
                 "What else should they show?", "Taken from", "Taken before", "In the folder, or path", "date"):
        assert any(name in words for words in reached), reached


# ---------------------------------------------------------------- narrowed, and kept in the address

FROM, BEFORE, UNDER = "Taken from", "Taken before", "In the folder, or path"


@pytest.fixture(scope="module")
def dated(photos, checkpoint, tmp_path_factory):
    """The address of an app.py with two galleries: an album of 2019 in two folders, and a card without dates."""
    place = tmp_path_factory.mktemp("dated")
    sources = sorted(photos.glob("scene*.jpg"))
    for number, source in enumerate(sources[:6]):
        folder = place / "album" / ("sea" if number % 2 else "home")
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as picture:
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9003] = f"2019:0{number + 1}:15 12:00:00"
            picture.save(folder / f"{number + 1}.jpg", exif=exif.tobytes())
    (place / "card").mkdir()
    shutil.copy(sources[7], place / "card" / "8.jpg")
    os.utime(place / "card" / "8.jpg", (1e9, 1e9))
    with running_app(place / "album", checkpoint, "--gallery", place / "card") as (address, said):
        assert f"on 7 pictures of {place / 'album'} and {place / 'card'}" in said
        yield address


@pytest.fixture
def dated_page(browser, dated):
    """A function that opens an address of that app, after its name; nothing that the pages run may fail."""
    faults = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:

        def opened(address=""):
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.goto(f"{dated}/{address}")
            page.wait_for_function(READY)
            return page

        yield opened
    assert faults == []


def test_dates_paths_and_order_narrow_the_results(dated_page):
    page = dated_page()
    assert len(ask(page, "a dog")) == 7
    page.get_by_text("More ways to search").click()
    assert set(ask(page, "sea", UNDER)) == {f"album/sea/{number}.jpg" for number in (2, 4, 6)}
    assert set(ask(page, "2019-03", FROM)) == {"album/sea/4.jpg", "album/sea/6.jpg"}
    assert ask(page, "2019-06", BEFORE) == ["album/sea/4.jpg"]
    assert "2019-04-15" in page.locator(".matches").inner_text()
    status = page.get_by_role("status").first.inner_text()
    assert "1 of 7 pictures are searched" in status
    assert "1 of 7 carry no date, and are dated by the time of their file" in status
    ask(page, "", UNDER)
    ask(page, "", FROM)
    ask(page, "", BEFORE)
    page.get_by_role("radio", name="date").click()
    page.wait_for_function("document.querySelector('.matches').innerText.includes('2001-09-09')")
    assert names(page) == ["card/8.jpg", *(f"album/{'home' if number % 2 else 'sea'}/{number}.jpg"
                                           for number in range(1, 7))]
    fill(page, page.get_by_label(FROM), "2020")
    page.get_by_label(FROM).press("Enter")
    page.get_by_text("no picture was taken from 2020 on: they are from 2001-09-09 to 2019-06-15").wait_for()


def test_the_address_holds_the_search_and_opening_it_shows_that_search(dated_page):
    page = dated_page()
    assert page.get_by_role("status").first.inner_text().endswith("card")  # nothing is asked yet
    page.get_by_text("More ways to search").click()
    ask(page, "a dog & <b>a ball</b>?")
    ask(page, "0.5:snow", "What else should they show?")
    ask(page, "the beach", MINUS)
    ask(page, "2019", FROM)
    page.get_by_role("radio", name="date").click()
    set_number(page, "Number of results", "4")
    page.wait_for_function("location.search.includes('n=4') && location.search.includes('sort=date')")
    shown = names(page)
    assert urlsplit(page.url).query == (
        "q=a+dog+%26+%3Cb%3Ea+ball%3C%2Fb%3E%3F&plus=0.5%3Asnow&minus=the+beach&n=4&after=2019&sort=date")
    assert page.get_by_role("link", name="Link to this search").get_attribute("href") == f"?{urlsplit(page.url).query}"

    again = dated_page(f"?{urlsplit(page.url).query}")
    again.locator(".matches").wait_for()
    assert names(again) == shown and len(shown) == 4
    assert again.get_by_label(PROMPT).input_value() == "a dog & <b>a ball</b>?"
    again.get_by_text("More ways to search").click()
    assert again.get_by_label("What else should they show?").input_value() == "0.5:snow"
    assert again.get_by_label(FROM).input_value() == "2019" and again.get_by_role("radio", name="date").is_checked()
    fill(again, again.get_by_label(PROMPT), "")
    fill(again, again.get_by_label("What else should they show?"), "")
    again.get_by_label(PROMPT).press("Enter")
    again.wait_for_function("location.search == ''")


@pytest.mark.parametrize("query, said", [
    ("q=a+dog&after=2019-13", "2019-13 is no date: type a year, month or day"),
    ("q=0:a+dog", "the weight of '0:a dog' must be above 0"),
    ("q=" + "a" * 1500, "a field takes 1,000 characters, and not 1,500"),
    ("q=" + "a" * 50_000, "a field takes 1,000 characters, and not 2,000"),
    ("q=a+dog&before=<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)> is no date"),
    ("q=a+dog&under=<script>alert(1)</script>", "no picture lies under <script>alert(1)</script>: the folders"),
    ("q=a+dog&under=" + "*a" * 400, "no picture lies under *a"),
])
def test_what_stands_in_an_address_is_text_and_errors_are_one_line(dated_page, query, said):
    page = dated_page(f"?{query}")
    page.get_by_text(said).wait_for()
    assert page.locator(".matches").count() == 0 and page.locator("[onerror]").count() == 0


@pytest.mark.parametrize("query", [
    "q=a+dog&n=99999&least=-7&sort=DROP", "q=a+dog&n=x&least=NaN&sort=", "q=a+dog&n=1e999&least=", "q=a+dog&x=1&q=2",
    "q=a+dog&n=9.4&example=/etc/passwd&file=/etc/passwd",
])
def test_numbers_in_an_address_that_cannot_be_are_those_that_can(dated_page, query):
    page = dated_page(f"?{query}")
    page.locator(".matches").wait_for()
    assert len(names(page)) == 7
    page.get_by_text("More ways to search").click()
    count = page.get_by_role("spinbutton", name="Number of results").input_value()
    assert count == ("50" if "99999" in query else "9")


def test_an_address_is_not_repeated_in_the_page_that_the_server_sends(dated):
    status, content = get(dated, "/?q=%22%3E%3Cscript%3Ealert(77)%3C/script%3E&after=alert(77)")
    assert status == 200 and b"alert(77)" not in content


# ---------------------------------------------------------------- from elsewhere


def get(address, path="/", method="GET", body=None, **headers):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("path", [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=%2Fetc%2Fpasswd", "/file=/etc/passwd", "/file/etc/passwd",
    "/assets/../../../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/static//etc/passwd",
    "/picture/../config.json", "/picture/16", "/picture/-1", "/gradio_api/proxy=http://127.0.0.1/", "/docs",
    "/gradio_api/file={checkpoint}/config.json", "/gradio_api/file={photos}/broken.jpg",
])
def test_no_file_can_be_named(address, checkpoint, photos, path):
    status, content = get(address, path.format(checkpoint=checkpoint, photos=photos))
    assert status in (403, 404) and b"root:" not in content and len(content) < 100


def test_pictures_are_sent_reduced_and_bare(address, tmp_path):
    status, content = get(address, "/picture/3")
    (tmp_path / "sent.jpg").write_bytes(content)
    with Image.open(tmp_path / "sent.jpg") as picture:
        assert status == 200 and max(picture.size) <= 512 and not picture.getexif()


@pytest.mark.parametrize("header, value, status", [
    ("Host", "example.com", 403), ("Host", "127.0.0.1.example.com", 403), ("Host", "192.168.0.7", 403),
    ("Host", "localhost", 200), ("Host", "127.0.0.1:80", 200), ("Origin", "http://example.com", 403),
    ("Origin", "null", 403), ("Origin", "http://127.0.0.1:1", 403),
])
def test_other_sites_are_refused(address, header, value, status):
    assert get(address, **{header: value})[0] == status


def test_a_request_cannot_be_large_or_name_a_file(address, sample_dir, photos):
    assert get(address, "/gradio_api/queue/join", "POST", b"x" * 70_000)[0] == 413
    assert get(address, "/gradio_api/upload", "POST", b"x" * 20_200_000)[0] == 413
    pictures = [*sample_dir.glob("Images/*.jpg")][:1], [*photos.glob("scene*.jpg")][:1], ["http://127.0.0.1:1/a.jpg"]
    settings = json.loads(get(address, "/config")[1])["dependencies"]
    upload = next(number["id"] for number in settings if any(event == "upload" for _, event in number["targets"]))
    for (path,) in pictures:
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        join = json.dumps({"data": [file], "fn_index": upload, "session_hash": "forged"}).encode()
        assert get(address, "/gradio_api/queue/join", "POST", join, **{"Content-Type": "application/json"})[0] == 200
        answer = get(address, "/gradio_api/queue/data?session_hash=forged")[1]
        assert b"this was not uploaded" in answer and b"data:image" not in answer


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("flags, complaint", [
    (["--gallery", "empty"], "empty holds no readable picture"),
    (["--checkpoint", "nowhere"], "there is no folder nowhere: name a run, or a model directory"),
    (["--port", "{taken}"], "--port 0 takes any that is free"),
])
def test_what_cannot_be_ends_in_one_line(workplace, flags, complaint):
    (workplace / "empty").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [flag.format(taken=taken.getsockname()[1]) for flag in flags]
        process = run_script("app.py", *with_flags(["--port", 0], *flags), cwd=workplace, check=False)
    assert process.returncode == 2 and process.stdout == "" and "Traceback" not in process.stderr
    assert complaint in process.stderr.splitlines()[-1] and process.stderr.splitlines()[-1].startswith("error: ")


def test_without_a_model_it_says_what_to_type(tmp_path):
    process = run_script("app.py", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "train a model first (python train.py)" in process.stderr


def test_without_gradio_it_says_what_to_type(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(\"No module named 'gradio'\", name='gradio')")
    process = subprocess.run([sys.executable, ROOT / "app.py"], capture_output=True, text=True, cwd=tmp_path,
                             env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert process.returncode == 2 and process.stderr == 'error: the page needs gradio: type pip install -e ".[app]"\n'
