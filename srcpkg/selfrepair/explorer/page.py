"""The page: one file that holds its data, its charts and the libraries that draw them, and asks nothing of any network."""

from collections.abc import Sequence
from importlib.resources import files as package_files
from typing import Any

import pandas as pd
import vl_convert
from altair import VEGALITE_VERSION

from selfrepair import __version__
from selfrepair.explorer.charts import specifications
from selfrepair.explorer.colours import of_models, of_theme
from selfrepair.explorer.packing import as_json, records
from selfrepair.explorer.payload import RunFiles, of_runs
from selfrepair.figures.style.looks import published_look
from selfrepair.quantities import MEANS, QUANTITIES

SCRIPTS = ("data.js", "text.js", "state.js", "download.js", "charts.js", "overview.js", "head.js", "token.js", "app.js")
"""Scripts of the page, in the order in which one builds on another."""


def content_of(runs: Sequence[RunFiles], release: pd.DataFrame) -> dict[str, Any]:
    """All that the page shows.

    Args:
        runs: Files of each model on each text.
        release: The paper's per-head results.
    """
    return {
        "runs": of_runs(runs),
        "published": {
            str(model): records(table.drop(columns="model")) for model, table in release.groupby("model", sort=False)
        },
        **_looks(list(dict.fromkeys(run.model for run in runs)), list(release["model"].unique())),
        "quantities": {
            name: {"label": of.label, "unit": of.unit, "description": of.description} for name, of in QUANTITIES.items()
        },
        "measured": [*MEANS, "pooled_repair_fraction"],
        "charts": specifications(),
        "version": __version__,
    }


def html(content: dict[str, Any]) -> str:
    """The page around what it shows."""
    static = package_files("selfrepair.explorer") / "static"
    library = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=VEGALITE_VERSION.rsplit(".", 1)[0]
    )
    if "</script" in library.lower():
        raise ValueError("the charts' library holds </script: take another version of vl-convert-python")
    parts = {
        "style": (static / "style.css").read_text(encoding="utf-8"),
        "library": library,
        "content": as_json(content),
        "script": "\n".join((static / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    page = (static / "page.html").read_text(encoding="utf-8")
    before, *rest = page.split("<!--=")
    pieces = [before]
    for part in rest:
        name, after = part.split("=-->", 1)
        pieces += [parts[name], after]
    return "".join(pieces)


def _looks(run: list[str], published: list[str]) -> dict[str, Any]:
    """Colours of each theme, and names of the published models."""
    themes = ("light", "dark")
    return {
        "colours": {theme: of_theme(theme) for theme in themes},
        "models": {theme: of_models(run, published, theme) for theme in themes},
        "names": {model: published_look(model)[0] for model in published},
    }
