"""The result of a search as one HTML file that opens anywhere: pictures and all are in it, and it asks for nothing."""

from search.markup import data_url, escaped, grey_jpeg, reduced_jpeg
from support.files import write_file

STYLE = """
:root {color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.4}
body {max-width: 1200px; margin: auto; padding: 12px} h1 {font-size: 1.3rem; overflow-wrap: anywhere}
ol {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: 16px; list-style: none;
  margin: 0; padding: 0}
figure {margin: 0} img {width: 100%; aspect-ratio: 4 / 3; object-fit: contain; border-radius: 4px; background: #8882}
figcaption {overflow-wrap: anywhere; font-size: 90%} p {opacity: 0.8; font-size: 90%}
"""
# The browser is to load nothing from elsewhere, and to run nothing, whatever stands in a name.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
BEGINNING = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy"'


def write_result_page(path, title, matches, name_of, about):
    """Write `inference.Match`es, in their order, into an HTML file.

    name_of: a function of a row that says how its picture is called; about: what was searched, as a line.
    """
    items = "\n".join(item(match, name_of(match.row)) for match in matches)
    page = f"""{BEGINNING} content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{STYLE}</style>
<h1>{escaped(title)}</h1>
<ol>
{items}
</ol>
<p>{escaped(about)}</p>
</html>
"""
    write_file(path, page)


def item(match, name):
    """Return one match as an item of the list: its picture, reduced and without what the camera noted, and its name."""
    try:
        content = reduced_jpeg(match.file)
    except OSError:
        content = grey_jpeg()
    words = f"<b>{match.rank}</b> {match.score:.3f}"
    if match.taken:
        words += f" <time>{match.taken}</time>"
    words += f"<br>{escaped(name)}"
    if match.copies:
        words += f"<br>and {len(match.copies)} that look the same"
    return f'<li><figure><img src="{data_url(content)}" alt=""><figcaption>{words}</figcaption></figure></li>'
