"""What tests of figures share: made-up tables, readers of a drawn figure, and checks that hold for every figure."""

import importlib
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import looks, saving
from selfrepair.quantities import HEAD_TOKEN, PARTS

from conftest import REPOSITORY

PUBLISHED = REPOSITORY / "resources" / "published" / "self_repair_by_head.csv"
FIGURES = (
    "effect_vs_logit_change",
    "layernorm_repair",
    "mlp_repair",
    "repair_breakdown",
    "self_repair_by_layer",
    "token_noise",
)
"""Those that `make_tables` makes tables for."""
COLUMNS = (
    *HEAD_TOKEN,
    "frozen_layernorm_logit_change",
    *(part.replace("self_repair", "clipped_fraction") for part in PARTS),
    "pooled_repair_fraction",
)
CAPTION_CHANGES = [{}, {"parallel_attention_mlp": True, "first_position": 1, "ablation": "zero"}]


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"selfrepair.figures.{name}")


def settings(n_layers: int = 4, n_heads: int = 3, **changes: object) -> dict[str, object]:
    return {
        "model": "tiny",
        "weights": "random float32",
        "corpus": "wikipedia",
        "ablation": "resample",
        "n_prompts": 40,
        "prompt_length": 33,
        "n_tokens": 1280,
        "top_fraction": 0.02,
        "first_position": 0,
        "donors": 1,
        "n_bootstrap": 200,
        "bootstrap_seed": 0,
        "confidence": 0.95,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "parallel_attention_mlp": False,
        "logit_cap": 30.0,
        **changes,
    }


def with_values(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    for column in COLUMNS:
        if column.startswith("clipped"):
            frame[column] = rng.uniform(0.1, 0.5, len(frame))
        else:
            frame[column] = rng.normal(0.1, 0.3, len(frame))
    frame["self_repair"] = frame[list(PARTS)].sum(axis=1)
    for column in COLUMNS:
        frame[f"{column}_low"], frame[f"{column}_high"] = frame[column] - 0.05, frame[column] + 0.05
    return frame


def make_heads(n_layers: int = 4, n_heads: int = 3, **changes: object) -> pd.DataFrame:
    rows = [
        {"selection": selection, "layer": layer, "head": head, "relative_depth": layer / max(n_layers - 1, 1)}
        for selection in ("top", "all")
        for layer in range(n_layers)
        for head in range(n_heads)
    ]
    frame = with_values(pd.DataFrame(rows).assign(n_tokens=25, n_prompts=20), np.random.default_rng(0))
    frame.attrs = settings(n_layers, n_heads, **changes)
    return frame


def make_layers(heads: pd.DataFrame) -> pd.DataFrame:
    layers = heads.groupby(["selection", "layer"], as_index=False).mean(numeric_only=True).assign(n_heads=3)
    layers.attrs = dict(heads.attrs)
    return layers


def make_model(heads: pd.DataFrame) -> pd.DataFrame:
    rows = heads.groupby("selection", as_index=False)
    model = rows.mean(numeric_only=True).assign(n_heads=rows.size()["size"])
    model.attrs = dict(heads.attrs)
    return model


def make_tokens(n: int = 300, n_heads: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    frames = []
    for rank in range(1, n_heads + 1):
        effect = rng.exponential(0.5, n)
        frame = pd.DataFrame({"rank": rank, "layer": rank, "head": 7, "prompt": np.arange(n) // 30})
        frame["direct_effect"], frame["logit_change"] = effect, -0.5 * effect + rng.normal(0, 0.2, n)
        frame["self_repair"] = frame["direct_effect"] + frame["logit_change"]
        frame["selected"] = frame["direct_effect"].rank(ascending=False) <= 0.02 * n
        frames.append(frame.assign(pos=np.arange(n) % 30))
    tokens = pd.concat(frames, ignore_index=True)
    tokens.attrs = settings(n_tokens=n)
    return tokens


def make_spread(n_heads: int = 4) -> pd.DataFrame:
    ranks = np.arange(1, n_heads + 1)
    spread = pd.DataFrame({"rank": ranks, "layer": ranks, "head": 7, "n_tokens": 6, "n_prompts": 5})
    columns = {"self_repair_q10": -0.2, "self_repair_q50": 0.25, "self_repair_q90": 0.65}
    for name, value in (("broken", 1 / 6), ("overcorrected", 0.5)):
        columns |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    spread = spread.assign(**columns)
    spread.attrs = settings(n_tokens=300)
    return spread


def make_tables(n_layers: int = 4, n_heads: int = 3) -> dict[str, dict[str, pd.DataFrame]]:
    heads = make_heads(n_layers, n_heads)
    layers = make_layers(heads)
    both = {"heads": heads, "layers": layers}
    model = make_model(heads)
    return {
        "self_repair_by_layer": {**both, "model": model, "published": pd.read_csv(PUBLISHED)},
        "effect_vs_logit_change": {
            f"heads_{kind}": make_heads(n_layers, n_heads, ablation=kind) for kind in ("resample", "mean", "zero")
        },
        "repair_breakdown": {"layers": layers, "model": model},
        "token_noise": {"tokens": make_tokens(), "spread": make_spread()},
        "layernorm_repair": {**both, "model": model},
        "mlp_repair": {**both, "model": model},
    }


def draw(name: str, tables: dict[str, pd.DataFrame] | None = None) -> Figure:
    return module_of(name).draw(make_tables()[name] if tables is None else tables)


def labelled(ax: Axes, label: str) -> list:
    return [artist for artist in ax.get_children() if artist.get_label() == label]


def n_dots(ax: Axes, label: str) -> int:
    (dots,) = labelled(ax, label)
    return len(dots.get_offsets())


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def written(figure: Figure, folder: Path, stem: str) -> tuple[bytes, bytes]:
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    saving.save(figure, png, svg)
    return png.read_bytes(), svg.read_bytes()


def rendered(name: str, config: dict[str, object] | None = None, **changes: object) -> str:
    """A caption as the report shows it: Jinja2, then docutils, where any complaint is an error.

    Args:
        name: Name of the caption's file in `report/`.
        config: The workflow's config, of which captions read some values.
        changes: Settings that differ from those of `settings`.
    """
    params = SimpleNamespace(settings=settings(**changes))
    snakemake = SimpleNamespace(params=params, config=config or {}, wildcards=SimpleNamespace())
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    source = (REPOSITORY / "report" / f"{name}.rst").read_text(encoding="utf-8")
    text = environment.from_string(source).render(snakemake=snakemake)
    return publish_parts(text, writer="html5", settings_overrides={"halt_level": 2, "report_level": 1})["html_body"]


def check_caption(name: str, *, longest: int = 165, config: dict[str, object] | None = None, **changes: object) -> str:
    """A figure's caption begins with its question, names model and paper and is short; gives its words."""
    text = re.sub(r"<[^>]+>", "", rendered(name, config, **changes))
    assert re.match(r"\s*[A-Z][^.]*\?", text), "the first sentence is a question"
    assert "tiny (random float32)" in text
    assert "Rushing &amp; Nanda 2024" in text
    assert len(text.split()) <= longest
    assert "{" not in text
    return text


def check_page(figure: Figure, width_mm: float = 174) -> None:
    """The figure has this width, and nothing of it lies outside the page."""
    with looks.context():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert width * 25.4 == pytest.approx(width_mm)
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


def check_bytes(name: str, tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Two drawings of the same tables are the same files."""
    first, second = (written(module_of(name).draw(tables), folder, str(index)) for index in range(2))
    assert first == second
