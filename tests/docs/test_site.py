"""The site is built of the pages without a warning, and asks no other machine for anything."""

import functools
import http.server
import re
import threading
from html.parser import HTMLParser

import pytest
from homes import REPO

mkdocs_build = pytest.importorskip("mkdocs.commands.build")
from mkdocs.config import load_config  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` builds it, where a warning is an error: of links and anchors, of names of the API."""
    folder = tmp_path_factory.mktemp("site")
    mkdocs_build.build(load_config(str(REPO / "mkdocs.yml"), site_dir=str(folder)))
    return folder


class Fetched(HTMLParser):
    """Addresses of what a browser fetches to show a page; those of links that are followed are not."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        fetched = [about.get(name) for name in ("src", "srcset", "poster", "data")]
        if tag == "link" and about.get("rel") not in ("canonical", "prev", "next"):
            fetched.append(about.get("href"))
        self.found += [address for address in fetched if address]


def test_nothing_is_fetched_from_elsewhere(site):
    pages = {page: Fetched(page.read_text()).found for page in site.rglob("*.html")}
    assert len(pages) > 60
    for page, found in pages.items():
        assert found
        for address in found:
            assert "//" not in address, (page, address)
            assert (page.parent / address.split("?")[0]).exists() or page.name == "404.html", (page, address)
    styles = [sheet.read_text() for sheet in site.rglob("*.css")]
    assert styles and not [found for text in styles for found in re.findall(r"(?:url\(|@import )['\"]?https?:", text)]


def test_names_of_the_api_are_shown_with_what_is_said_of_them(site):
    text = (site / "api.html").read_text()
    for name in ("multicoco.LatentReasoner", "multicoco.load", "multicoco.load_config", "multicoco.StageSchedule"):
        assert f'id="{name}"' in text
    assert "the id of <code>" in text and "UserError" in text


def test_links_to_files_of_the_repository_lead_to_pages_with_them(site):
    text = (site / "contributing.html").read_text()
    assert 'href="repository/multicoco/methods/method.py.html"' in text
    assert '<div class="highlight">' in (site / "repository/multicoco/methods/method.py.html").read_text()
    assert 'href="../methods.html"' in (site / "repository" / "CHANGELOG.html").read_text()


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *arguments: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1600, "light")])
def test_pages_fit_and_their_pictures_are_there(browser, address, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, said, elsewhere = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith((address, "data:")) or elsewhere.append(request.url))
    for name in ("index", "quickstart", "tutorial", "concepts", "config", "api", "report", "evidence"):
        page.goto(f"{address}/{name}.html")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert all(page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")), name
    assert not said and not elsewhere
    context.close()
