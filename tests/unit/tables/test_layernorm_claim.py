"""Readings of the share that LayerNorm repairs: by hand, as planted, and as the paper's files give them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.tables.layernorm_claim import READINGS, THIS_RUN, shares_repaired, tabulate_layernorm_claim

from conftest import REPOSITORY
from planted.layernorm import QUIET, by_hand
from planted.layernorm_run import PlantedRun

pytestmark = pytest.mark.filterwarnings("error")

PUBLISHED = REPOSITORY / "resources" / "published" / "self_repair_by_head.csv"


def test_every_reading_of_the_claim_is_the_share_that_was_planted(planted_run: PlantedRun, tmp_path: Path) -> None:
    """All of the repair of one head in two, so that readings differ as they should."""
    out = tmp_path / "claim.parquet"
    tabulate_layernorm_claim(**planted_run.inputs("zero"), published=PUBLISHED, out=out)
    claim = pd.read_parquet(out)
    found = claim[(claim["source"] == THIS_RUN) & (claim["layers"] == "second-to-last")].set_index("reading")
    top = [token for token in QUIET if planted_run.top_tokens()[0, token].any()]
    shares = {token: by_hand(token)["self_repair"] / by_hand(token)["direct_effect"] for token in QUIET}
    counts = planted_run.top_tokens()[0].sum(-1)
    clipped = sum(counts[token] * min(shares[token], 1) for token in top) / counts.sum()
    pooled = sum(counts[t] * by_hand(t)["self_repair"] for t in top) / sum(
        counts[t] * by_hand(t)["direct_effect"] for t in top
    )
    # Head 1 of the layer writes nothing: its clipped share counts as 0, and it has no ratio.
    assert found["fraction"]["clipped per token"] == pytest.approx(clipped / 2, rel=1e-5)
    for reading in READINGS[1:]:
        assert found["fraction"][reading] == pytest.approx(pooled, rel=1e-5)
        assert found["fraction_low"][reading] <= pooled + 1e-9 <= found["fraction_high"][reading] + 2e-9
    assert set(claim[claim["source"] == THIS_RUN]["n_heads"]) == {2, 4}


def test_readings_of_the_share() -> None:
    """Three heads of which one has no token, by hand."""
    layernorm, effect = np.array([1.0, 3.0, 0.0]), np.array([2.0, 30.0, 0.0])
    found = shares_repaired(layernorm, effect, np.array([2.0, 0.5, 0.0]), np.array([4.0, 5.0, 0.0]))
    wanted = {
        "clipped per token": (0.5 + 0.1) / 2,
        "ratio per head, mean": (0.5 + 0.1) / 2,
        "ratio per head, median": 0.3,
        "pooled": 4 / 32,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted)
    assert np.isnan(float(shares_repaired(*(np.zeros(2) for _ in range(4)))["pooled"]))


def test_published_readings_are_those_of_the_papers_files(planted_run: PlantedRun, tmp_path: Path) -> None:
    """The values that resources/published/README.md names."""
    out = tmp_path / "claim.parquet"
    tabulate_layernorm_claim(**planted_run.inputs("resample"), published=PUBLISHED, out=out)
    claim = pd.read_parquet(out).set_index(["source", "layers", "reading"])["fraction"]
    names = ("pythia-160m", "gpt2-small", "pythia-410m", "gpt2-medium")
    clipped = [round(claim[name, "all", "clipped per token"], 2) for name in names]
    ratios = [round(claim[name, "second-to-last", "ratio per head, mean"], 2) for name in names]
    assert clipped == [0.34, 0.32, 0.25, 0.30]
    assert ratios == [0.17, 0.25, 0.23, 0.19]
