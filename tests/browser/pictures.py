"""Draws the pictures of the documentation: ``python tests/browser/pictures.py FOLDER`` (``docs/``).

It needs a Chromium with its driver, and takes photographs that it draws itself.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from browser.conftest import chromium_driver
from browser.dashboard_pictures import draw_dashboard
from browser.page import Page
from harness import Rolecall
from photographs import write_photographs
from tagging import add_dataset, samples, states, tagging_rolecall, task_file

COUNT = 80


def draw(page: Page, server: Rolecall, photos: Path, folder: Path) -> None:
    """Go through the page and save what is to be seen."""

    def save(name: str) -> None:
        page.run("document.getElementById('folder').textContent = '/home/me/photos/summer'")
        path = folder / f"vision-datasets-{name}.png"
        page.picture(path)
        with Image.open(path) as image:
            image.convert("RGB").save(path, optimize=True)

    id_ = add_dataset(server, "Summer", photos)["id"]
    page.open(f"{server.base_url}/ui/datasets")
    page.until_pictures(60)
    page.click("#tag")
    page.wait(lambda: any(f"{number}/{COUNT}" in page.text("#tag") for number in range(12, 40)))
    page.wait(lambda: len(page.all("#grid .tags > li")) > 20)
    page.wait(lambda: f"{page.text('#tag').partition('/')[0].split()[-1]} tagged" in page.text("#counts"))
    save("running")
    assert list(states(server, id_))[-1]["status"] == "complete"
    for sample in samples(server, id_)[1:9:3]:
        server.http.patch(f"/datasets/{id_}/samples/{sample['id']}", json={"add": ["holiday"]})
    page.colours("dark")
    page.resize(390, 780)
    page.driver.refresh()
    page.until_pictures(60)
    page.until("#counts", f"{COUNT} tagged")
    save("phone")


def main(folder: Path) -> None:
    """Draw all pictures into a folder."""
    answer = {"lighting": "bright", "setting": "outdoor", "clarity": "sharp"}
    slow = task_file(answer, fake={"first_token_delay_s": 0.3})
    with tempfile.TemporaryDirectory() as text, chromium_driver() as driver:
        photos = Path(text) / "photos"
        write_photographs(photos, COUNT, size=(480, 320))
        page = Page(driver)
        page.resize(1100, 700)
        page.colours("light")
        draw_dashboard(page, folder)
        page.colours("light")
        page.resize(1100, 700)
        with tagging_rolecall(Path(text) / "server", task=slow) as server:
            draw(page, server, photos, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
