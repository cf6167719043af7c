"""The analyses of neurons find exactly the erasure neuron that was planted (tests/planted/neuron.py)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.replacements import constant_replacement
from selfrepair.measure.neurons import neuron_effects, summarise, write_neurons
from selfrepair.tables.neurons import tabulate_neurons

from planted.neuron import AMPLIFIER, ERASURE, GAINS, HEAD, LESSER, N_NEURONS, ROUNDING, Planted, planted_neuron
from written import write_settings

N_PROMPTS, LENGTH = 8, 11
TABLES = ("neuron_share", "neuron_concentration", "erasure_neurons", "erasure_quadrants", "neuron_consistency")


@pytest.fixture(scope="module")
def planted() -> Planted:
    return planted_neuron()


@pytest.fixture
def tokens(rng: np.random.Generator) -> np.ndarray:
    """Even prompts of large signal, odd ones of small."""
    ids = rng.integers(0, 6, size=(N_PROMPTS, LENGTH))
    ids[::2] += 6
    return ids


def top_tokens(planted: Planted, tokens: np.ndarray) -> np.ndarray:
    """An eighth of the tokens, those on which the head's direct effect is largest [1, prompt, pos-1]."""
    effect = planted.head_write(tokens) * planted.output[tokens[:, 1:]]
    selected = (effect > np.quantile(effect, 0.875))[None]
    assert not selected[0, 1::2].any(), "the donors of selected prompts have a small signal"
    return selected


@pytest.fixture(params=["resample", "zero"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tables(planted: Planted, tokens: np.ndarray, kind: str, tmp_path: Path) -> dict[str, pd.DataFrame]:
    """Every table of the planted head, by the code that the workflow runs."""
    model = selfrepair.load_model(planted.hf, dtype="float64")
    ids = torch.from_numpy(tokens)
    if kind == "resample":
        replacement = run_clean(model, ids.roll(1, 0)).z.__getitem__
    else:
        replacement = constant_replacement(model, kind, ids.shape, None)
    selected = top_tokens(planted, tokens)
    parts = [
        summarise(effects, top_neurons=5)
        for effects in neuron_effects(model, ids, run_clean(model, ids), replacement, [HEAD], selected, 1)
    ]
    attrs = {"ablation": kind, "neuron_layer": 1, "n_neurons": N_NEURONS, "n_prompts": N_PROMPTS}
    write_neurons(tmp_path / "neurons.h5", parts, [HEAD], attrs=attrs, provenance={})
    heads = write_settings(tmp_path / "heads.parquet", n_prompts=N_PROMPTS, n_bootstrap=100)
    files = {name: tmp_path / f"{name}.parquet" for name in TABLES}
    tabulate_neurons(shards=[tmp_path / "neurons.h5"], heads_table=heads, tables=files)
    return {name: pd.read_parquet(path) for name, path in files.items()}


def test_the_head_does_what_was_planted(planted: Planted, tokens: np.ndarray) -> None:
    model = selfrepair.load_model(planted.hf, dtype="float64")
    clean = run_clean(model, torch.from_numpy(tokens))
    wanted = planted.head_write(tokens) * planted.output[tokens[:, 1:]]
    found = clean.head_direct_effect.numpy()
    np.testing.assert_allclose(found[HEAD[0], :, :, HEAD[1]], wanted, atol=ROUNDING)
    found[HEAD[0], :, :, HEAD[1]] = 0
    assert not found.any()


def test_the_erasure_neuron_leads_on_every_token_in_its_quadrant(
    planted: Planted, tokens: np.ndarray, kind: str, tables: dict[str, pd.DataFrame]
) -> None:
    leaders = tables["erasure_neurons"]
    prompt, pos = np.nonzero(top_tokens(planted, tokens)[0])
    assert leaders["prompt"].tolist() == prompt.tolist()
    assert leaders["pos"].tolist() == pos.tolist()
    assert set(leaders["neuron"]) == {ERASURE}
    write = planted.head_write(tokens)
    ablated = np.roll(write, 1, axis=0) if kind == "resample" else np.zeros_like(write)
    for column, written in (("direct_effect", write), ("ablated_direct_effect", ablated)):
        wanted = planted.neuron_effect(ERASURE, written, tokens)[prompt, pos]
        np.testing.assert_allclose(leaders[column], wanted, atol=ROUNDING)
        every = sum(planted.neuron_effect(neuron, written, tokens)[prompt, pos] for neuron in GAINS)
        np.testing.assert_allclose(leaders[f"mlp_{column}"], every, atol=ROUNDING)
    assert (leaders["direct_effect"] < leaders["ablated_direct_effect"]).all()
    assert (leaders["ablated_direct_effect"] < 0).all()
    quadrants = tables["erasure_quadrants"].set_index("quadrant")
    for end in ("", "_low", "_high"):
        assert quadrants[f"token_share{end}"].to_dict() == {
            "anti_erasure": 1,
            "negative_to_positive": 0,
            "more_positive": 0,
            "no_repair": 0,
        }


def test_it_carries_the_share_that_was_planted(tables: dict[str, pd.DataFrame]) -> None:
    rows = tables["neuron_concentration"].set_index("neurons")
    sizes = sorted((abs(gain) for gain in GAINS.values()), reverse=True)
    assert sizes[0] == abs(GAINS[ERASURE])
    repairing = abs(GAINS[ERASURE]) / (abs(GAINS[ERASURE]) + abs(GAINS[LESSER]))
    for count in rows.index:
        wanted = sum(sizes[:count]) / sum(sizes)
        for name in ("share_of_change", "share_of_direct_effect"):
            for end in ("", "_low", "_high"):
                assert rows.loc[count, f"{name}{end}"] == pytest.approx(wanted, abs=ROUNDING)
        assert rows.loc[count, "share_of_repair"] == pytest.approx(repairing if count == 1 else 1, abs=ROUNDING)
    assert tables["neuron_concentration"].attrs["top_percent"] == 1


def test_it_repairs_the_share_that_was_planted(tables: dict[str, pd.DataFrame]) -> None:
    """The best neuron repairs 60% of what ablation removes, the second 12%, and there is no third."""
    for share, rows in tables["neuron_share"].groupby("share_of_effect"):
        found = rows.sort_values("nth")["token_share"].tolist()
        assert found == [1, 0 if share == 0.5 else 1, 0, 0, 0], share


def test_it_is_the_only_leader(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["neuron_consistency"]
    lead = table[table["top"] == 1]
    assert lead["neuron"].tolist() == [ERASURE]
    assert lead["n_neurons"].tolist() == [1]
    assert lead["token_share"].tolist() == [1]
    among = table[table["top"] == 5].set_index("neuron")["token_share"]
    assert among[ERASURE] == among[LESSER] == 1
    assert AMPLIFIER not in among.index


def test_without_the_erasure_neuron_the_lesser_one_is_found(planted: Planted, tokens: np.ndarray) -> None:
    """What is found follows the weights: the planted neuron is not found where it does nothing."""
    other = planted_neuron()
    with torch.no_grad():
        other.hf.model.layers[1].mlp.down_proj.weight[:, ERASURE] = 0
    model = selfrepair.load_model(other.hf, dtype="float64")
    ids = torch.from_numpy(tokens)
    nothing = constant_replacement(model, "zero", ids.shape, None)
    selected = top_tokens(planted, tokens)
    (effects,) = neuron_effects(model, ids, run_clean(model, ids), nothing, [HEAD], selected, 1)
    found = summarise(effects, top_neurons=1)
    assert set(found["neuron"].values.ravel()) == {LESSER}
