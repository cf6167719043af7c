"""Snakemake's report of the tiny run in a headless Chromium: every figure, finding and table that it is meant to hold."""

import base64
import re
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page
from workflow.running import Space

LONG = {"token_noise", "ablation_type_tokens", "donor_noise_tokens", "erasure_neurons", "layernorm_scale_histogram"}
OF_SNAKEMAKE = "cdn.tailwindcss.com should not be used in production"
"""What the page itself warns of, which Snakemake builds so."""


@pytest.fixture(scope="module")
def report(finished: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = finished.copy(tmp_path_factory.mktemp("report") / "space")
    space.make("--report", "results/report.html")
    return space.work / "results" / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Page:
    return browser.new_page(viewport={"width": 1280, "height": 1600})


def test_the_report_opens_without_a_word_and_has_a_category_of_tables(
    page: Page, report: Path, finished: Space
) -> None:
    said = list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    page.get_by_text("Tables", exact=True).click()
    page.get_by_text("ablation", exact=True).first.wait_for()
    rows = [tuple(row.inner_text().split("\t")[:2]) for row in page.locator("tbody tr").all()]
    shown = {(table.strip().replace(" ", "_"), kind.strip()) for table, kind in rows}
    written = {(path.stem, path.parent.name) for path in (finished.run / "tables").rglob("*.csv")}
    assert shown == {(table, kind) for table, kind in written if table not in LONG}
    assert [words for words in said if OF_SNAKEMAKE not in words] == []
    page.close()


def test_the_report_holds_files_as_they_are(report: Path, finished: Space) -> None:
    html = report.read_text(encoding="utf-8")
    held = {base64.b64decode(data) for data in re.findall(r'data:text/csv[^,"]*;base64,([A-Za-z0-9+/=]+)', html)}
    heads = finished.run / "tables" / "resample" / "heads.csv"
    assert heads.read_bytes() in held
    assert len(pd.read_csv(heads)) == 16
    for figure in finished.figures:
        assert (finished.run / "figures" / f"{figure}.png").exists()
        assert f"{figure}.png" in html


def test_the_front_page_leads_to_the_explorer(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.get_by_role("link", name="explorer").click()
    page.wait_for_function("document.querySelector('main h1')")
    assert page.url.startswith((report.parent / "explorer.html").as_uri())
    page.close()
