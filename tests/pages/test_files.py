"""The files of the pages: what is answered, to whom, and with which policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rolecall.errors import NotFound
from rolecall.pages import files
from rolecall.pages.files import PAGES, page_routes

STATIC = Path(files.__file__).parent / "static"
VENDOR = STATIC / "vendor"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def client() -> TestClient:
    """Return a client of the pages, behind which something else answers at `/`."""

    def missing(_request: object, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(str(error), 404)

    def other(_request: object) -> PlainTextResponse:
        return PlainTextResponse("other")

    app = Starlette(routes=[*page_routes(), Route("/", other)], exception_handlers={NotFound: missing})
    return TestClient(app, follow_redirects=False)


@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_there_under_a_strict_policy(client: TestClient, path: str) -> None:
    """A page is HTML that no other site may frame, and that takes scripts and styles from here alone."""
    answer = client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.html")), ids=lambda path: path.name)
def test_pages_hold_no_scripts_and_no_foreign_addresses(path: Path) -> None:
    """What the policy would forbid is not there: inline scripts, styles, handlers, other hosts; each file exists."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", text) == []
    for name in re.findall(r'(?:src|href)="/ui/static/([^"]+)"', text):
        assert (STATIC / name).is_file()
    links = re.findall(r'<a href="(/ui[^"]*)"', text)
    assert links == list(PAGES)


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.js")), ids=lambda path: path.name)
def test_modules_import_files_that_are_there(path: Path) -> None:
    """Every import of a module leads to a file that is served, and none to another host."""
    for name in re.findall(r'^(?:import|export) [^;]*?from "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        assert name.startswith((".", "/ui/static/"))
        assert (path.parent / name).resolve().is_file()


def test_a_file_is_sent_once(client: TestClient) -> None:
    """A browser that has the file as it is gets 304."""
    first = client.get("/ui/static/dashboard/start.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = client.get("/ui/static/dashboard/start.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name",
    [
        *("none.js", "../files.py", "..%2ffiles.py", "dashboard", "dashboard/", "/etc/passwd", "%2fetc%2fpasswd"),
        *("vendor/%2e%2e/shared.js", "vendor/README.md", "vendor/lit-html/LICENSE", ".hidden.js", "%00.js"),
        *("..%5cfiles.py", "vendor//x.js"),
    ],
)
def test_nothing_else_of_the_disk_is_served(client: TestClient, name: str) -> None:
    """A name that leads elsewhere, or to what is no file of a page, is not found."""
    assert client.get(f"/ui/static/{name}").status_code == 404


@pytest.mark.parametrize("path", PAGES)
def test_a_page_with_a_slash_behind_it_leads_to_the_page(client: TestClient, path: str) -> None:
    """Whoever types it that way is led there, with what was asked of it."""
    for query in ("", "?status=error&model=a%2Fb"):
        answer = client.get(f"{path}/{query}", headers=BROWSER)
        assert (answer.status_code, answer.headers["location"]) == (307, path + query)


def test_browsers_are_led_from_the_root_to_the_dashboard(client: TestClient) -> None:
    """Who takes HTML goes to the dashboard, by an address that says no host; all others get what they got before."""
    answer = client.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (307, "/ui")
    for headers in ({"accept": "application/json"}, {"accept": "*/*"}):
        assert client.get("/", headers=headers).text == "other"


def test_libraries_are_as_they_were_published() -> None:
    """Each vendored folder stands in the table with its version, its licence and the hash of its archive."""
    table = (VENDOR / "README.md").read_text(encoding="utf-8")
    folders = [path.name for path in VENDOR.iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        row = next(row for row in table.splitlines() if row.startswith(f"| `{folder}/`"))
        assert re.search(rf"{folder} \d+\.\d+\.\d+ \| [\w-]+ .*`{folder}/LICENSE`.*\| `[A-Za-z0-9+/=]{{88}}` \|", row)
        assert (VENDOR / folder / "LICENSE").is_file()
