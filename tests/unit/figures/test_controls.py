"""Figures of the controls and of the published values: drawn from made-up tables, what they say, and their captions."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from selfrepair.figures import donor_noise, published_comparison, selection_control
from selfrepair.figures.style import looks
from selfrepair.files.tables import write_table
from selfrepair.quantities import OF_PAPER
from selfrepair.tables.donor_noise import donor_sums, variance_over_donors
from selfrepair.tables.published import tabulate_published
from selfrepair.tables.selection_control import CHOICES, EFFECTS
from selfrepair.tables.statistics import Resamples, estimated
from unit.figures.shared import (
    PUBLISHED,
    check_bytes,
    check_caption,
    check_page,
    labelled,
    make_heads,
    module_of,
    settings,
    words,
)

from written import totals_of

pytestmark = pytest.mark.filterwarnings("error")

FIGURES = ("selection_control", "donor_noise", "published_comparison")


def control_tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    quantities = [*EFFECTS, "pooled_repair_fraction", "repair_slope"]
    quantities += [f"{name}_minus_top" for name in ("self_repair", "pooled_repair_fraction", "repair_slope")]

    def with_ends(frame: pd.DataFrame) -> pd.DataFrame:
        for name in quantities:
            frame[name] = rng.uniform(0.1, 0.5, len(frame))
            frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - 0.031, frame[name] + 0.057
        frame.attrs = settings()
        return frame

    layers = pd.DataFrame([{"choice": choice, "layer": layer} for layer in range(4) for choice in CHOICES])
    layers["relative_depth"], layers["n_heads"] = layers["layer"] / 3, 3
    model = with_ends(pd.DataFrame({"choice": CHOICES, "n_heads": 12}))
    ends = [f"pooled_repair_fraction{end}" for end in ("", "_low", "_high")]
    model.loc[model["choice"] == "random", ends] = [-7.0, -11.0, -4.9]
    return {"layers": with_ends(layers), "model": model}


def noise_tables(n_heads: int = 4, n_tokens: int = 25) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    heads, tokens = [], []
    prompt = np.arange(n_tokens) * 40 // n_tokens
    resamples = Resamples.drawn(40, 50, 0)
    # A token a prompt, or several.
    place = np.zeros((40, n_tokens), bool)
    place[prompt, np.arange(n_tokens)] = True
    for rank in range(1, n_heads + 1):
        values = rng.normal(1, 1, n_tokens) + rng.normal(0, 0.5, (3, n_tokens))
        row = {"rank": rank, "layer": rank, "head": 7, "relative_depth": rank / 4, "n_tokens": n_tokens, "n_donors": 3}
        sums = donor_sums(np.where(place, values[:, None], 0), place, np.ones((1, 1)))
        for name, value in variance_over_donors(totals_of(sums, resamples), 3).items():
            row |= estimated(name, value)
        heads.append(row)
        for donor, of_donor in enumerate(values, start=1):
            listed = {
                "rank": rank,
                "layer": rank,
                "head": 7,
                "prompt": prompt,
                "pos": np.arange(n_tokens),
                "donor": donor,
            }
            tokens.append(pd.DataFrame({**listed, "self_repair": of_donor}))
    tables = {"heads": pd.DataFrame(heads), "tokens": pd.concat(tokens, ignore_index=True)}
    for table in tables.values():
        table.attrs = settings()
    return tables


def published_tables(
    folder: Path, model: str | None, slope: float = 0.8, noise: float = 0.02, n_heads: int | None = None
) -> dict[str, pd.DataFrame]:
    """A run whose heads have ``slope`` times the published values, for a published model; any run otherwise.

    With ``n_heads``, of so many heads alone.
    """
    heads = make_heads(12, 12) if model else make_heads()
    if model:
        rng = np.random.default_rng(0)
        published = pd.read_csv(PUBLISHED).query("model == @model").set_index(["layer", "head"])
        at = pd.MultiIndex.from_frame(heads[["layer", "head"]])
        for name in OF_PAPER:
            heads[name] = slope * published[name].loc[at].to_numpy() + noise * rng.normal(size=len(heads))
            heads[f"{name}_low"], heads[f"{name}_high"] = heads[name] - 0.05, heads[name] + 0.05
    folder.mkdir(exist_ok=True)
    if n_heads:
        heads = heads.groupby("selection", sort=False).head(n_heads)
    write_table(heads, folder / "heads.parquet", heads.attrs)
    files = {name: folder / f"{name}.parquet" for name in ("pairs", "agreement", "distributions")}
    tabulate_published(
        heads_table=folder / "heads.parquet",
        published=PUBLISHED,
        model=model,
        **{f"{name}_out": path for name, path in files.items()},
    )
    return {name: pd.read_parquet(path) for name, path in files.items()}


def tables_of(name: str, folder: Path) -> dict[str, pd.DataFrame]:
    if name == "published_comparison":
        return published_tables(folder, None)
    return control_tables() if name == "selection_control" else noise_tables()


def check_figure(figure: Figure) -> None:
    check_page(figure)
    assert "n = 1,280 tokens, 40 prompts of length 33" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("name", FIGURES)
def test_page_and_bytes(name: str, tmp_path: Path) -> None:
    tables = tables_of(name, tmp_path)
    check_figure(module_of(name).draw(tables))
    check_bytes(name, tables, tmp_path)


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    tables = tables_of(name, tmp_path)
    key, column = {
        "selection_control": ("model", "repair_slope"),
        "donor_noise": ("heads", "donor_share"),
        "published_comparison": ("distributions", "median"),
    }[name]
    for run in (module_of(name).draw, module_of(name).finding):
        with pytest.raises(ValueError, match=f"table '{key}' lacks {column}: remake"):
            run({**tables, key: tables[key].drop(columns=column)})


def test_a_choice_outside_the_range_is_told() -> None:
    figure = selection_control.draw(control_tables())
    _, fraction, slope = figure.axes
    assert any("outside: −7.0 (−11.0 to −4.9)" in text.get_text() for text in fraction.texts)
    assert not slope.texts
    assert fraction.get_xlim()[0] > -1
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(texts) == {f"by {name}" for name, _ in selection_control.CHOICES.values()}
    assert set(selection_control.CHOICES) == set(CHOICES)


@pytest.mark.parametrize("n_heads", [1, 4])
def test_every_token_and_donor_is_a_dot(n_heads: int) -> None:
    figure = donor_noise.draw(noise_tables(n_heads))
    assert len(figure.axes) == n_heads
    for ax in figure.axes:
        (dots,) = labelled(ax, "one donor")
        assert len(dots.get_offsets()) == 3 * 25
        assert re.search(r"^L\dH7: donors \d+% \(\d+ to \d+%\)", ax.get_title())
        (line,) = labelled(ax, "mean over donors")
        assert (np.diff(line.get_ydata()) >= 0).all()


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.5])
def test_a_planted_slope_is_found(slope: float, tmp_path: Path) -> None:
    tables = published_tables(tmp_path, "gpt2-small", slope, noise=0.02)
    agreement = tables["agreement"].set_index("quantity")
    assert list(agreement.index) == list(OF_PAPER)
    assert (agreement["n_heads"] == 144).all()
    for _, row in agreement.iterrows():
        assert row["slope"] == pytest.approx(slope, abs=0.05)
        assert row["slope_low"] <= row["slope"] <= row["slope_high"]
        assert row["correlation"] > 0.9
    published = pd.read_csv(PUBLISHED).query("model == 'gpt2-small'")
    wanted = (slope - 1) * published["direct_effect"].mean()
    assert agreement.loc["direct_effect", "difference"] == pytest.approx(wanted, abs=0.01)


def test_agreement_of_equal_values_is_exact(tmp_path: Path) -> None:
    agreement = published_tables(tmp_path, "gpt2-small", 1.0, noise=0.0)["agreement"]
    for name, value in {"correlation": 1, "rank_correlation": 1, "slope": 1, "difference": 0}.items():
        for end in ("", "_low", "_high"):
            np.testing.assert_allclose(agreement[name + end], value, atol=1e-6)


def test_correlations_are_pandas_own(tmp_path: Path) -> None:
    tables = published_tables(tmp_path, "gpt2-small", 0.7, noise=0.2)
    for _, row in tables["agreement"].iterrows():
        pairs = tables["pairs"][tables["pairs"]["quantity"] == row["quantity"]]
        assert row["correlation"] == pytest.approx(pairs["value"].corr(pairs["published"]))
        assert row["rank_correlation"] == pytest.approx(pairs["value"].rank().corr(pairs["published"].rank()))


def test_a_published_model_is_drawn_head_by_head(tmp_path: Path) -> None:
    tables = published_tables(tmp_path, "gpt2-small")
    figure = published_comparison.draw(tables)
    check_figure(figure)
    assert "GPT-2 small, published" in words(figure)
    panels = [ax for ax in figure.axes if labelled(ax, "_heads")]
    assert len(panels) == len(OF_PAPER)
    for ax in panels:
        (dots,) = labelled(ax, "_heads")
        assert len(dots.get_offsets()) == 144
    lines = published_comparison.finding(tables)
    assert len(lines) == len(OF_PAPER)
    assert re.match(
        r"self-repair of 144 heads, this run against GPT-2 small as published: correlation [\d.]+ \(", lines[0]
    )


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    heads = make_heads()
    write_table(heads, tmp_path / "heads.parquet", heads.attrs)
    message = "models.tiny.published is pythia-160m, which has 12 layers of 12 heads, but the model has 4 layers of 3"
    outs = {f"{name}_out": tmp_path / f"{name}.parquet" for name in ("pairs", "agreement", "distributions")}
    with pytest.raises(ValueError, match=message):
        tabulate_published(heads_table=tmp_path / "heads.parquet", published=PUBLISHED, model="pythia-160m", **outs)


def test_distributions_are_quantiles_over_heads(tmp_path: Path) -> None:
    table = published_tables(tmp_path, None)["distributions"]
    assert set(table["model"]) == {"this run", *looks.PUBLISHED}
    published = pd.read_csv(PUBLISHED).query("model == 'gpt2-medium' and layer >= 16")["self_repair"]
    row = table.query("model == 'gpt2-medium' and depth == 'last' and quantity == 'self_repair'").iloc[0]
    assert row["n_heads"] == len(published) == 128
    assert row["median"] == pytest.approx(published.median())
    assert row["quantile_95"] == pytest.approx(published.quantile(0.95))
    assert row["median_low"] < row["median"] < row["median_high"]


@pytest.mark.parametrize("name", FIGURES)
def test_numbers_of_a_finding_move_with_its_tables(name: str, tmp_path: Path) -> None:
    tables = tables_of(name, tmp_path)
    before = " ".join(module_of(name).finding(tables))
    for table in tables.values():
        for column in table.select_dtypes("float"):
            table[column] *= 1.37
    after = " ".join(module_of(name).finding(tables))
    own = [re.findall(r"−?\d+\.?\d*%?", re.sub(r"Rushing.*|L\dH\d", "", text)) for text in (before, after)]
    assert np.mean([a == b for a, b in zip(*own, strict=False)]) < 0.4


def test_findings_say_what_the_tables_hold(tmp_path: Path) -> None:
    tables = control_tables()
    model = tables["model"].set_index("choice")
    model.loc["removed", ["pooled_repair_fraction", "pooled_repair_fraction_low", "pooled_repair_fraction_high"]] = [
        0.5,
        0.4,
        0.6,
    ]
    tables["model"] = model.reset_index()
    assert "50% (40 to 60%) where the same donor chooses" in selection_control.finding(tables)[1]
    heads = noise_tables()["heads"]
    heads[["donor_share", "donor_share_low", "donor_share_high"]] = [0.25, 0.21, 0.31]
    assert "donors make up 25% (21 to 31%) of the variance" in donor_noise.finding({"heads": heads})[0]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("published", [None, "gpt2-small"])
def test_captions(name: str, published: str | None) -> None:
    config = {
        "analyses": {"noise_donors": 4},
        "tokens": {"prompts_per_shard": 4},
        "models": {"tiny": {"published": published} if published else {}},
    }
    plain = check_caption(name, longest=190, config=config)
    if name == "donor_noise":
        assert "each of 3 donor prompts" in plain
    if name == "published_comparison":
        assert ("published for gpt2-small" in plain) == (published is not None)


def test_one_head_has_its_dot_and_its_difference(tmp_path: Path) -> None:
    tables = published_tables(tmp_path, "gpt2-small", n_heads=1)
    figure = published_comparison.draw(tables)
    check_figure(figure)
    differences = {str(row["quantity"]): row["difference"] for _, row in tables["agreement"].iterrows()}
    told = {name: f"{value:+.2g} logits".replace("-", "−") for name, value in differences.items()}
    panels = [ax for ax in figure.axes if labelled(ax, "_heads")]
    for ax, difference in zip(panels, told.values(), strict=True):
        assert len(labelled(ax, "_heads")[0].get_offsets()) == 1
        (said,) = [text.get_text() for text in ax.texts if "slope" in text.get_text()]
        assert said == f"r = none\nslope none\none head, {difference}\nfrom the published"
    assert "brackets" not in figure.get_supxlabel()
    lines = published_comparison.finding(tables)
    assert lines[0] == (
        "self-repair of one head, this run against GPT-2 small as published: correlation none, of ranks none; slope none; "
        f"difference {told['self_repair']}."
    )
    assert lines[-1].endswith("Of one head there is no correlation, no slope and no interval over heads.")
    (line,) = published_comparison.in_short(tables)
    assert f"lies {told['self_repair']} from that published for GPT-2 small**" in line


def test_one_top_token_has_no_share_of_donors() -> None:
    tables = noise_tables(2, n_tokens=1)
    assert tables["heads"]["donor_share"].isna().all()
    figure = donor_noise.draw(tables)
    check_figure(figure)
    for ax in figure.axes:
        assert ax.get_title().endswith(": one top token,\nno variance over tokens")
        assert len(labelled(ax, "one donor")[0].get_offsets()) == 3
    lines = donor_noise.finding(tables)
    for line in lines:
        assert (
            "one token has no variance over tokens to hold it against, so that there is no share. Mean self-repair: "
            in line
        )
        assert "none" not in line
    # Of several tokens a share that is missing is a fault.
    tables = noise_tables(2)
    tables["heads"]["donor_share"] = np.nan
    for act in (donor_noise.draw, donor_noise.finding):
        with pytest.raises(ValueError, match="has no value in donor_share"):
            act(tables)
