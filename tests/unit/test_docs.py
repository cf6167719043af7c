"""The documentation: its links, its numbers, the examples of docstrings, and the site that is made of it."""

import doctest
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

import selfrepair

from conftest import REPOSITORY, MakeOnce

DOCS = REPOSITORY / "docs"
NOT_OURS = (".venv", ".venv-authors", ".venv-lock", ".git", ".snakemake", "results", "logs", "_build", "build")
PAGES = sorted(
    path for path in REPOSITORY.rglob("*.md") if not set(path.relative_to(REPOSITORY).parts[:-1]).intersection(NOT_OURS)
)
SITE_PAGES = {path.stem for path in DOCS.glob("*.md")}

READER = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6)

WITH_A_RUN = ("open_run", "self_repair")
"""Functions whose examples open a finished run: tests/workflow/test_docs.py runs them."""


def _tokens(path: Path):
    for token in READER.parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a Markdown page, as a forge makes them."""
    return {str(token.attrs["id"]) for token in _tokens(path) if token.type == "heading_open"}


def broken_links(path: Path) -> list[str]:
    """Relative links and images of a Markdown page that lead nowhere."""
    wrong = []
    for token in _tokens(path):
        key = {"link_open": "href", "image": "src"}.get(token.type)
        target = unquote(str(token.attrs.get(key, ""))) if key else ""
        if not target or re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and (there.suffix != ".md" or anchor not in anchors(there))):
            wrong.append(target)
    return wrong


def test_no_page_is_overlooked() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "profiles/README.md"} <= {
        path.relative_to(REPOSITORY).as_posix() for path in PAGES
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One head\n\n[a](#one-head) [b](#two) [c](none.md) [d](page.md#one-head) [e](https://x.org)\n")
    assert broken_links(page) == ["#two", "none.md"]


@pytest.mark.parametrize(("page", "quoted"), json.loads((DOCS / "numbers.json").read_text(encoding="utf-8")).items())
def test_pages_say_what_the_run_found(page: str, quoted: list[str]) -> None:
    """docs/draw_examples.py writes what a run of the default found as the page has to put it."""
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert [words for words in quoted if words not in text] == []


def test_every_figure_has_its_section_with_its_picture() -> None:
    captions = {path.stem for path in (REPOSITORY / "report").glob("*.rst")} - {"workflow", "table"}
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == captions
    shown = {path.stem for path in (DOCS / "figures").glob("*.png")}
    assert shown == captions - {"models_by_layer", "models_and_published"}
    assert all(f"](figures/{name}.png)" in page for name in shown)


def test_the_repository_stays_small() -> None:
    pictures = [path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg") and "_build" not in path.parts]
    assert sum(path.stat().st_size for path in pictures) < 2_000_000


FUNCTIONS = [name for name in selfrepair.__all__ if callable(getattr(selfrepair, name))]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in WITH_A_RUN])
def test_examples_of_docstrings_run(name: str) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(selfrepair, name), name, globs={})
    assert found.examples, f"selfrepair.{name} has no example in its docstring"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found).failed == 0


class Links(HTMLParser):
    """Of an HTML page, what it links and loads, and what can be linked in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag == "a":
            self.links.append(found.get("href", ""))
        elif tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(found.get("href", ""))
        else:
            self.loaded.append(found.get("src", ""))


@pytest.fixture(scope="module")
def site(make_once: MakeOnce) -> Path:
    """The site, built as `make site` does."""

    def fill(folder: Path) -> None:
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
        places = ["-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "srcpkg")}
        done = subprocess.run([*command, *places], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr

    return make_once("site", fill) / "html"


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html")}


def test_every_page_is_in_the_site_and_in_its_contents(site: Path) -> None:
    contents = Links(site / "index.html").links
    assert {page for page in SITE_PAGES if not (site / f"{page}.html").exists()} == set()
    assert {page for page in SITE_PAGES - {"index"} if f"{page}.html" not in contents} == set()


def test_links_of_the_site_lead_somewhere(built: dict[Path, Links]) -> None:
    wrong = []
    for path, page in built.items():
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", link) or link in ("", "#"):
                continue
            there = (path.parent / file).resolve() if file else path
            if not there.exists() or (anchor and there in built and anchor not in built[there].ids):
                wrong.append(f"{path.name}: {link}")
    assert wrong == []


def test_the_site_needs_no_network(built: dict[Path, Links], site: Path) -> None:
    loaded = {what for page in built.values() for what in page.loaded}
    assert {what for what in loaded if re.match(r"(https?:)?//", what)} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*", styles) == []


def test_the_public_functions_are_in_the_site(built: dict[Path, Links], site: Path) -> None:
    ids = built[site / "api.html"].ids
    assert {name for name in FUNCTIONS if f"selfrepair.{name}" not in ids} == set()


def test_the_site_that_is_published_is_the_one_that_make_builds() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make site"]
    assert steps[-1]["with"]["path"] == "docs/_build/html"
    assert "sphinx-build -q -W --keep-going -b html docs docs/_build/html" in (REPOSITORY / "Makefile").read_text()
    assert workflow["jobs"]["publish"]["needs"] == "build"


def test_four_readers_find_their_page_on_the_first(site: Path) -> None:
    links = Links(site / "index.html").links
    assert {"quickstart.html", "method.html", "cluster.html", "contributing.html"} <= set(links)
