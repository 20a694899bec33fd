"""The page of the datasets, as a person uses it: a whole rolecall, a fake vision model, a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from browser.page import CONTRASTS, Page
from harness import Rolecall
from process.test_door import ADMIN, KEY, key_row, write_keys
from tagging import (
    TAGS,
    add_dataset,
    await_processed,
    photos,
    samples,
    start,
    states,
    tagging_rolecall,
    task_file,
    vision_entry,
)
from unused_ports import unused_port

SLOW = task_file(fake={"first_token_delay_s": 0.1})
DONE = "Tagged"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall without keys, whose model is slow enough to be watched."""
    with tagging_rolecall(tmp_path_factory.mktemp("tagging"), task=SLOW) as running:
        yield running


def open_dataset(page: Page, server: Rolecall, name: str, folder: Path) -> int:
    """Register a folder and show it; return its id."""
    id_: int = add_dataset(server, name, folder)["id"]
    page.open(f"{server.base_url}/ui/datasets#{id_}")
    page.until("#name", name)
    return id_


def tag_all(server: Rolecall, id_: int) -> None:
    """Tag a dataset without the page."""
    start(server, id_)
    assert list(states(server, id_))[-1]["status"] == "complete"


def test_from_a_folder_to_tagged_pictures(page: Page, tmp_path: Path) -> None:
    """An empty page, a folder that is added, its pictures, the tagging as it goes on, and the pictures with a tag."""
    folder = photos(tmp_path / "photos", 40)
    with tagging_rolecall(tmp_path / "server", task=SLOW) as server:
        page.open(f"{server.base_url}/ui/datasets")
        page.until("#nothing", "No datasets yet")
        assert page.barriers() == []
        page.write("#add-name", "Summer")
        page.write("#add-folder", str(folder))
        page.click("#add-form button")
        page.until("#name", "Summer")
        page.until_pictures(40)
        assert page.texts("#list li") == ["Summer\n40"]
        assert page.text("#counts") == "40 pictures · 0 tagged"
        page.click("#tag")
        running = page.wait(lambda: words if "/40" in (words := page.text("#tag")) else "")
        assert running.startswith("Tagging... ")
        assert page.text("#job-words").endswith("of 40 pictures")
        assert not page.find("#tag").is_enabled()
        assert page.is_shown("#bar")
        assert page.until("#job-words", DONE) == "Tagged 40 samples."
        assert not page.is_shown("#bar")
        assert page.find("#tag").is_enabled()
        page.wait(lambda: len(page.all("#grid .tags > li")) == 40 * len(TAGS))
        page.until("#counts", "40 tagged")
        assert sorted(page.texts("#filter button")) == sorted(f"{tag}\n40" for tag in TAGS.values())
    assert page.problems() == []


def test_pictures_by_their_tags(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """Several tags are all asked for; the address has them, so that back and a bookmark lead there."""
    id_ = open_dataset(page, server, "filter", photos(tmp_path, 6))
    tag_all(server, id_)
    for sample in samples(server, id_)[:2]:
        server.http.patch(f"/datasets/{id_}/samples/{sample['id']}", json={"add": ["a & b=c"]})
    page.driver.refresh()
    page.until_pictures(6)
    page.click('#filter button[data-tag="a & b=c"]')
    page.wait(lambda: len(page.all("#grid > li")) == 2)
    page.click('#filter button[data-tag="indoor"]')
    page.until("#shown", "2 pictures tagged a & b=c and indoor")
    pressed = page.all('#filter button[aria-pressed="true"]')
    assert sorted(each.get_attribute("data-tag") or "" for each in pressed) == ["a & b=c", "indoor"]
    page.driver.refresh()
    page.until("#shown", "2 pictures tagged a & b=c and indoor")
    page.driver.back()
    page.driver.back()
    page.wait(lambda: len(page.all("#grid > li")) == 6)
    assert page.problems() == []


def test_a_job_is_shown_to_whoever_comes_later(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """A page that is opened in the middle shows how far it is; Cancel ends it."""
    id_ = add_dataset(server, "later", photos(tmp_path, 150))["id"]
    start(server, id_)
    await_processed(server, id_, 3)
    page.open(f"{server.base_url}/ui/datasets#{id_}")
    page.until("#tag", "/150")
    page.click("#cancel")
    page.until("#job-words", "Cancelled: ")
    assert not page.is_shown("#cancel")
    assert page.find("#tag").is_enabled()
    assert server.get(f"/datasets/{id_}")["auto_tag"]["status"] == "idle"
    assert page.problems() == []


def test_failures_are_shown(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """A picture that cannot be read has no preview and says why; those that failed can be shown alone."""
    folder = photos(tmp_path, 4)
    (folder / "broken.jpg").write_bytes(b"no picture")
    id_ = open_dataset(page, server, "failures", folder)
    tag_all(server, id_)
    page.driver.refresh()
    page.until("#job-words", "Tagged 4 of 5 samples; 1 could not be tagged.")
    page.click("#filter .danger")
    page.until("#shown", "1 picture whose tagging failed")
    page.until("#grid .frame", "No preview")
    assert "not an image" in page.text("#grid .problem")
    page.click("#grid .open")
    page.until("#sample-problem", "There is no preview of 'broken.jpg'")


def test_a_job_that_is_refused(page: Page, tmp_path: Path) -> None:
    """Where no model plays the role, none begins; the page says so, and the button can be pressed again."""
    with Rolecall(tmp_path / "server", ()) as server:
        open_dataset(page, server, "no model", photos(tmp_path / "photos", 3))
        page.click("#tag")
        page.until("#problem", "No model plays the role 'vision_general'")
        assert page.find("#tag").is_enabled()
        assert not page.is_shown("#job")


def test_an_error_ends_the_job_in_words(page: Page, tmp_path: Path) -> None:
    """Where the role's model has no file, the page says so, and the button can be pressed again."""
    absent = vision_entry("absent", role_priority={"vision_general": 1}, backend_config={"model_path": "/no/such.gguf"})
    with Rolecall(tmp_path / "server", (absent,)) as server:
        open_dataset(page, server, "no file", photos(tmp_path / "photos", 3))
        page.click("#tag")
        words = page.until("#job-words", "Stopped")
        assert words.startswith("Stopped after 0 of 3 samples: No model of the role 'vision_general' can serve")
        assert "bad" in (page.find("#job-words").get_attribute("class") or "")
        assert page.find("#tag").is_enabled()


def test_a_folder_that_is_none(page: Page, server: Rolecall) -> None:
    """The reason stands beside the field, and what was written stays there."""
    page.open(f"{server.base_url}/ui/datasets")
    page.wait(lambda: page.is_shown("#page"))
    page.run("document.getElementById('add').open = true")
    page.write("#add-name", "none")
    page.write("#add-folder", "/no/such/folder")
    page.click("#add-form button")
    assert "No such file or directory" in page.until("#add-problem", "cannot be used")
    assert page.find("#add-folder").get_attribute("value") == "/no/such/folder"


def test_a_folder_without_pictures_and_a_rescan(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """It says what to do; what is put there is found under Options."""
    open_dataset(page, server, "void", tmp_path)
    page.until("#no-samples", "No pictures in this folder")
    assert not page.find("#tag").is_enabled()
    photos(tmp_path, 3)
    page.click("#more > summary")
    page.click("#rescan")
    page.until_pictures(3)
    assert page.find("#tag").is_enabled()
    assert not page.is_shown("#no-samples")
    assert page.problems() == []


def test_a_dataset_is_removed_after_a_question(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """It is gone from the list then; its files are there."""
    id_ = open_dataset(page, server, "to be removed", photos(tmp_path, 2))
    for is_sure in (False, True):
        page.run("document.getElementById('more').open = true")
        page.click("#remove")
        question = page.driver.switch_to.alert
        assert "“to be removed”" in question.text
        (question.accept if is_sure else question.dismiss)()
    page.wait(lambda: "to be removed" not in page.text("#list"))
    assert server.http.get(f"/datasets/{id_}").status_code == 404
    assert len(list(tmp_path.iterdir())) == 2


def test_many_pictures_come_in_parts(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """Sixty at first, more when asked for; only thumbnails that come into sight are fetched."""
    open_dataset(page, server, "many", photos(tmp_path, 130))
    page.until_pictures(60)
    asked = "return performance.getEntriesByType('resource').filter((e) => e.name.includes('/thumbnail')).length;"
    assert 0 < page.run(asked) < 60
    page.run("document.getElementById('next').scrollIntoView()")
    page.click("#next")
    page.wait(lambda: len(page.all("#grid > li")) == 120)
    page.click("#next")
    page.wait(lambda: len(page.all("#grid > li")) == 130)
    assert not page.is_shown("#next")


# -- tags of one's own


def test_tags_are_changed_with_the_keyboard(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """A picture is opened, gets a tag, loses one, is closed; the focus comes back to it, and all is told in words."""
    id_ = add_dataset(server, "keyboard", photos(tmp_path, 2))["id"]
    tag_all(server, id_)
    page.open(f"{server.base_url}/ui/datasets#{id_}")
    page.until_pictures(2)
    page.run("document.querySelector('#grid .open').focus()")
    page.press(Keys.ENTER)
    page.wait(lambda: page.focused() == "sample-field")
    page.wait(lambda: page.run("return document.getElementById('sample-picture').naturalWidth") > 0)
    page.press("birthday", Keys.ENTER)
    page.wait(lambda: page.run("return document.getElementById('sample-spoken').textContent") == "Added birthday.")
    assert "birthday" in page.text("#sample-tags")
    page.wait(lambda: page.find("#sample-field").get_attribute("value") == "")
    page.run("""document.querySelector('#sample-tags button[aria-label="Remove dark"]').focus()""")
    page.press(Keys.SPACE)
    page.wait(lambda: "dark" not in page.text("#sample-tags"))
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.is_shown("#sample"))
    assert page.focused() == "open"
    first = samples(server, id_)[0]
    assert (first["tags"], first["own_tags"]) == (["indoor", "sharp", "birthday"], ["birthday"])
    page.wait(lambda: "birthday" in page.text("#grid > li .own"))
    assert page.problems() == []


def test_the_way_through_the_page_with_the_tabulator(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """The first stop skips to the pictures; Auto-tag is reached and pressed; a menu closes by Escape."""
    open_dataset(page, server, "tabulator", photos(tmp_path, 2))
    page.until_pictures(2)
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    page.press(Keys.TAB)
    assert page.focused() == "skip"
    page.press(Keys.ENTER)
    page.wait(lambda: page.focused() == "content")
    page.tab_to("tag")
    page.press(Keys.TAB, Keys.ENTER)
    page.wait(lambda: page.is_shown("#rescan"))
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.is_shown("#rescan"))
    page.run("document.getElementById('tag').focus()")
    page.press(Keys.ENTER)
    page.until("#job-words", DONE)
    spoken = page.run("return document.getElementById('spoken').textContent")
    assert spoken == "Tagged 2 samples."


def test_screen_readers_are_told_names(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """Whatever can be operated has a name; a picture's button has that of its file; status is a live region."""
    id_ = open_dataset(page, server, "names", photos(tmp_path, 3))
    tag_all(server, id_)
    page.driver.refresh()
    page.until_pictures(3)
    page.run("document.getElementById('more').open = true; document.getElementById('add').open = true")
    controls = page.names_of_controls()
    assert [control for control in controls if not control[1] and control[0] not in {"image", "list"}] == []
    assert {("button", "Auto-tag"), ("textbox", "Name"), ("list", "Pictures")} <= set(controls)
    assert ("button", "IMG_0001.jpg") in controls
    assert page.find("#spoken").get_attribute("role") == "status"
    assert page.find("#problem").get_attribute("role") == "alert"
    page.click("#grid .open")
    page.wait(lambda: ("dialog", "IMG_0001.jpg") in page.names_of_controls())
    inside = dict.fromkeys(page.names_of_controls())
    assert ("image", "IMG_0001.jpg, tagged dark, indoor, sharp") in inside or ("button", "Remove dark") in inside
    assert all(name for role, name in inside if role == "button")


# -- how it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_colours_and_widths(page: Page, server: Rolecall, tmp_path: Path, scheme: str, width: int) -> None:
    """On a phone nothing lies beside the screen; every text has WCAG's contrast (AA), in both schemes."""
    folder = photos(tmp_path, 5)
    (folder / ("long name " * 18 + ".jpg")).write_bytes(b"no picture")
    name = f"A dataset with a name that is long, {scheme} {width} " + "x" * 60
    page.colours(scheme)
    page.resize(width, 844)
    id_ = open_dataset(page, server, name, folder)
    tag_all(server, id_)
    for sample in samples(server, id_)[:1]:
        server.http.patch(f"/datasets/{id_}/samples/{sample['id']}", json={"add": ["y" * 100, "own"]})
    page.driver.refresh()
    page.until_pictures(6)
    assert page.run("return document.scrollingElement.scrollWidth") <= width
    ground = page.run("return getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(", "))) < 200) == (scheme == "dark")
    page.run("document.getElementById('add').open = true; document.getElementById('more').open = true")
    assert page.run("return document.scrollingElement.scrollWidth") <= width
    assert page.run(CONTRASTS) == []
    page.run("document.getElementById('more').open = false")
    page.click("#grid .open")
    page.wait(lambda: page.is_shown("#sample-field"))
    assert page.run(CONTRASTS) == []
    right = page.run("return document.getElementById('sample').getBoundingClientRect().right")
    assert right <= width


def test_a_phone_while_a_job_runs(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """The buttons stand in one line, and the options lie within the screen."""
    page.resize(390, 844)
    id_ = open_dataset(page, server, "phone", photos(tmp_path, 80))
    page.click("#tag")
    await_processed(server, id_, 10)
    page.until("#tag", "/80")
    page.click("#more > summary")
    tops = "return ['#tag', '#cancel', '#more'].map((e) => document.querySelector(e).getBoundingClientRect().top);"
    assert len(set(page.run(tops))) == 1
    box = "const r = document.querySelector('.menu > .panel').getBoundingClientRect(); return [r.left, r.right];"
    left, right = page.run(box)
    assert 0 <= left < right <= 390
    page.click("#cancel")
    page.until("#job-words", "Cancelled")


# -- what comes from elsewhere


def test_names_and_tags_are_text(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """Markup in the names of datasets, files and tags is shown as it is, and nothing of it runs."""
    evil = "<img src=x onerror=document.title='run'>"
    photos(tmp_path, 1)
    (tmp_path / "IMG_0001.jpg").rename(tmp_path / f"{evil}.jpg")
    id_ = open_dataset(page, server, evil, tmp_path)
    (sample,) = samples(server, id_)
    path = f"/datasets/{id_}/samples/{sample['id']}"
    assert server.http.patch(path, json={"add": [evil, "'\"><script>document.title='run'</script>"]}).is_success
    page.driver.refresh()
    page.until_pictures(1)
    assert page.text("#name") == evil
    assert evil in page.text("#list")
    assert page.text("#grid .file") == f"{evil}.jpg"
    assert evil in page.texts("#grid .tags li")[0]
    assert evil in page.text("#filter")
    page.click("#filter button")
    page.until("#shown", "1 picture tagged")
    page.click("#grid .open")
    page.until("#sample-name", evil)
    assert evil in page.text("#sample-tags")
    assert page.driver.title == f"{evil} · rolecall"
    assert page.run("return document.querySelectorAll('img[src=x], #grid script').length") == 0
    assert page.problems() == []


def test_nothing_is_loaded_from_elsewhere(page: Page, server: Rolecall, tmp_path: Path) -> None:
    """All requests go to the server itself; its policy forbids others, inline scripts and frames."""
    open_dataset(page, server, "own host", photos(tmp_path, 1))
    page.until_pictures(1)
    names = page.run("return performance.getEntriesByType('resource').map((e) => e.name);")
    own = {"http", "blob"}
    assert {urlsplit(name).netloc for name in names if urlsplit(name).scheme in own} <= {f"127.0.0.1:{server.port}", ""}
    policy = server.http.get("/ui/datasets").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    page.run(
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s)"
    )
    assert page.driver.title != "1"
    assert any("Content Security Policy" in problem for problem in page.problems())


# -- keys


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with keys, and a dataset of three pictures."""
    folder = tmp_path_factory.mktemp("guarded")
    made = tagging_rolecall(folder / "server", settings={"api_keys_file": "keys.json"})
    write_keys(made.config_dir / "keys.json", key_row("user", KEY), key_row("boss", ADMIN, scopes=["admin"]))
    with made as running:
        headers = {"authorization": f"Bearer {ADMIN}"}
        add_dataset(running, "behind a key", photos(folder / "photos", 3), headers=headers)
        yield running


def enter(page: Page, key: str) -> None:
    page.wait(lambda: page.is_shown("#key-field"))
    page.write("#key-field", key)
    page.press(Keys.ENTER)


def test_the_page_asks_for_a_key(page: Page, guarded: Rolecall) -> None:
    """A wrong one is refused in words; a right one shows all, thumbnails included, and is in no address."""
    page.open(f"{guarded.base_url}/ui/datasets")
    page.wait(lambda: page.focused() == "key-field")
    assert not page.is_shown("#page")
    enter(page, "rc-wrong")
    page.until("#key-problem", "not one of this server's")
    enter(page, KEY)
    page.until_pictures(3)
    assert not page.is_shown("#add")
    assert not page.is_shown("#folder")
    page.click("#tag")
    page.until("#job-words", "Tagged 3 samples.")
    names = page.run("return performance.getEntriesByType('resource').map((e) => e.name);")
    assert not [name for name in [*names, page.driver.current_url] if KEY in name]
    assert page.run("return [localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    page.driver.refresh()
    page.until_pictures(3)
    page.click("#forget")
    page.wait(lambda: page.is_shown("#key-field"))
    assert page.run("return sessionStorage.length") == 0


def test_what_a_key_may_not_do_is_said(page: Page, guarded: Rolecall) -> None:
    """A key for admin alone may register folders, and not ask models."""
    page.open(f"{guarded.base_url}/ui/datasets")
    enter(page, ADMIN)
    page.until_pictures(3)
    assert page.is_shown("#add")
    page.click("#tag")
    page.until("#problem", "needs inference")
    assert page.find("#tag").is_enabled()


def test_a_job_that_waits_for_a_limit(page: Page, tmp_path: Path) -> None:
    """The page says what is waited for."""
    made = tagging_rolecall(tmp_path / "server", settings={"api_keys_file": "keys.json"})
    few = key_row("few", KEY, requests_per_minute=2)
    write_keys(made.config_dir / "keys.json", few, key_row("boss", ADMIN, scopes=["admin"]))
    with made as server:
        add_dataset(server, "one", photos(tmp_path / "photos", 9), headers={"authorization": f"Bearer {ADMIN}"})
        page.open(f"{server.base_url}/ui/datasets")
        enter(page, KEY)
        page.until_pictures(9)
        page.click("#tag")
        page.until("#job-words", "2 of 9 pictures, waiting for the limit of the key 'few'")
        page.click("#cancel")
        page.until("#job-words", "Cancelled: 2 of 9 samples are done.")


def test_a_key_that_is_revoked(page: Page, tmp_path: Path) -> None:
    """The page asks for another one with the next request."""
    made = tagging_rolecall(tmp_path / "server", settings={"api_keys_file": "keys.json"})
    write_keys(made.config_dir / "keys.json", key_row("user", KEY), key_row("boss", ADMIN, scopes=["admin"]))
    with made as server:
        add_dataset(server, "one", photos(tmp_path / "photos", 3), headers={"authorization": f"Bearer {ADMIN}"})
        page.open(f"{server.base_url}/ui/datasets")
        enter(page, KEY)
        page.until_pictures(3)
        write_keys(server.config_dir / "keys.json", key_row("boss", ADMIN, scopes=["admin"]))
        page.wait(lambda: server.http.get("/datasets", headers={"x-api-key": KEY}).status_code == 401)
        page.click("#tag")
        page.until("#key-problem", "revoked")
        assert not page.is_shown("#page")


def test_a_server_that_goes_and_comes_back(page: Page, tmp_path: Path) -> None:
    """While it is away the page says so; then it goes on with the job that the next start goes on with."""
    folder = photos(tmp_path / "photos", 60)
    arguments = ("--port", str(unused_port()))
    with tagging_rolecall(tmp_path / "server", task=SLOW, arguments=arguments) as server:
        id_ = open_dataset(page, server, "away", folder)
        page.click("#tag")
        page.until("#tag", "/60")
        await_processed(server, id_, 4)
        assert server.stop() == 0
        page.until("#job-words", "connection is lost")
    with tagging_rolecall(tmp_path / "server", task=SLOW, arguments=arguments):
        page.until("#job-words", "Tagged 60 samples.", within_s=40)
