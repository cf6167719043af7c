"""The explorer of the tiny run in a headless Chromium, which is watched: what it says, asks for, and fails at."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from workflow.conftest import finished, fresh  # noqa: F401  fixtures
from workflow.running import Space

from conftest import MakeOnce

AXE = "axe-playwright-python==0.1.8"
"""A package that holds the script of axe-core."""
SECONDS = 60


def _chromium() -> str:
    """Debian's Chromium, installed where it is missing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, names)):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    return next(found for found in map(shutil.which, names) if found)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module: Playwright's event loop runs in this thread meanwhile, and Snakemake's API starts in none that has one."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def explorer(finished: Space) -> Path:  # noqa: F811
    """The page of the tiny run."""
    return finished.work / "results" / "explorer.html"


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, explorer: Path) -> Iterator[Open]:
    """Opens a page at an address of its own; no page may say anything on its console, fail, or ask for anything."""
    contexts, said = [], list[str]()

    def open_at(address: str = "", *, file: Path = explorer, width: int = 1280, theme: str = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: _note(request.url, file, said))
        page.goto(f"{file.as_uri()}{address}")
        settle(page)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not said, "\n".join(said)


def _note(url: str, file: Path, said: list[str]) -> None:
    if not url.startswith(("data:", "blob:")) and url.partition("#")[0] != file.as_uri():
        said.append(f"request: {url}")


def settle(page: Page) -> None:
    """Wait until the view that the address names is drawn."""
    page.wait_for_function(
        "document.querySelector('main h1') && !document.querySelector('main').hasAttribute('aria-busy')"
    )


def go(page: Page, address: str) -> None:
    """Go to an address of the page that is open."""
    if page.evaluate("location.hash") == address:
        return  # nothing would happen
    page.evaluate("() => document.querySelector('main').setAttribute('aria-busy', 'true')")
    page.evaluate("address => { location.hash = address; }", address)
    settle(page)


@pytest.fixture(scope="session")
def axe(make_once: MakeOnce) -> str:
    """axe-core, the checker of accessibility."""

    def fill(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(folder), AXE], check=True)
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            [name] = [name for name in content.namelist() if name.endswith("axe.min.js")]
            (folder / "axe.min.js").write_bytes(content.read(name))

    return (make_once("axe", fill) / "axe.min.js").read_text(encoding="utf-8")
