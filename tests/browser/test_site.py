"""The documentation's site in a headless Chromium, on a laptop in light colours and on a phone in dark ones."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from unit.test_docs import site  # noqa: F401  a fixture

OF_SPHINX = {"definition-list"}
"""How Sphinx writes the signature of a function, a parameter a line."""
ASKED = "axe.run({ resultTypes: ['violations'] })"


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious_on_any_page_which_asks_for_nothing_and_fits(
    browser: Browser,
    axe: str,
    site: Path,  # noqa: F811
    theme: Any,
    width: int,
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    wrong, said = [], list[str]()
    context.on("request", lambda request: said.append(request.url))
    context.on("weberror", lambda error: said.append(str(error.error)))
    for path in sorted(site.glob("*.html")):
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate(axe)
        wrong += [
            f"{path.name}: {each['help']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
            for each in page.evaluate(ASKED)["violations"]
            if each["impact"] in ("serious", "critical") and each["id"] not in OF_SPHINX
        ]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong.append(f"{path.name} is wider than {width} pixels")
        page.close()
    context.close()
    wrong += [words for words in said if not words.startswith(("file:", "data:"))]
    assert not wrong, "\n".join(wrong)
