"""The pictures of the dashboard for the documentation, each of a scene that a server tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from browser import scenes
from browser.page import Page
from browser.told import Told, snapshot, telling


@dataclass(frozen=True)
class Picture:
    """What the server tells, which view of it, and the window (px; height 0: the whole page) with its colours."""

    name: str
    scene: Callable[[], dict[str, Any]]
    view: str = "/ui"
    width: int = 1280
    height: int = 900
    colours: str = "light"

    def draw(self, page: Page, path: Path) -> None:
        """Save it."""
        told = Told(self.scene())
        told.decision = scenes.DECISION
        told.answer = "A harbour in the evening: three boats at the quay, the sun low over the breakwater."
        page.colours(self.colours)
        page.resize(self.width, self.height or 900)
        with telling(told) as url:
            page.open(url + self.view)
            page.wait(lambda: page.text("#link") == "live" and page.is_shown("#view h1"))
            _prepare(page, self.view)
            if self.height:
                page.picture(path)
            else:
                page.whole_picture(path)
        with Image.open(path) as image:
            image.convert("RGB").save(path, optimize=True)  # all colours: of a few, small signs get another model's


PICTURES = (
    Picture("dashboard", scenes.afternoon, height=0),
    Picture("dashboard-dark", scenes.afternoon, colours="dark"),
    Picture("dashboard-phone", scenes.afternoon, width=390, height=844),
    Picture("dashboard-20-models", scenes.crowd, height=1150),
    Picture("dashboard-empty", snapshot, height=700),
    Picture("dashboard-error", scenes.trouble),
    Picture("dashboard-requests", scenes.afternoon, "/ui/requests", height=700),
    Picture("dashboard-request", scenes.afternoon, "/ui/requests?request=req_0001", height=800),
    Picture("dashboard-playground", scenes.afternoon, "/ui/playground", height=700),
)


def draw_dashboard(page: Page, folder: Path) -> list[Path]:
    """Save all of them into a folder, and return the files."""
    paths = [folder / f"{picture.name}.png" for picture in PICTURES]
    for picture, path in zip(PICTURES, paths, strict=True):
        picture.draw(page, path)
    return paths


def _prepare(page: Page, view: str) -> None:
    """Do what is to be seen."""
    if "request=" in view:
        page.until("#decision", "tolerance 15")
    elif view.endswith("requests"):
        page.wait(lambda: page.is_shown("#history"))
    elif view.endswith("playground"):
        page.find("#words").send_keys("What is to be seen from the end of the quay?\n")
        page.wait(lambda: "breakwater" in page.text("#turns") and page.is_shown("#send"))
