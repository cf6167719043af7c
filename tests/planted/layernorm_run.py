"""A small run of the model in `planted.layernorm`: what the workflow's rules write, made by the functions that they call."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.files.sealed import write_json
from selfrepair.measure.ablations import measure_ablations
from selfrepair.measure.activations import cache_activations
from selfrepair.measure.frozen_layernorm import measure_frozen_layernorm
from selfrepair.measure.mean_activations import average_activations
from selfrepair.measure.shard import open_shard
from selfrepair.measure.thresholds import find_thresholds
from selfrepair.measure.tokens import assign_donors
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.tables.heads import tabulate_heads

from planted.layernorm import HEAD, QUIET, save_planted_model

COMPUTE = {"device": "cpu", "dtype": "float64", "center_unembed": True}
LENGTH, IN_SHARD, TOP = 7, 3, 0.5
N_HEADS = 4
"""In two layers, all ablated."""


@dataclass(frozen=True)
class PlantedRun:
    """The run's files: six prompts, each a quiet token repeated, in two shards; all heads under all kinds of ablation."""

    folder: Path
    tokens: np.ndarray

    def ablations(self, kind: str) -> list[Path]:
        return [self.folder / kind / f"{first}.h5" for first in range(0, len(self.tokens), IN_SHARD)]

    def frozen(self, kind: str) -> list[Path]:
        return [path.with_name(f"frozen_{path.name}") for path in self.ablations(kind)]

    def inputs(self, kind: str) -> dict:
        shards = {"shards": self.ablations(kind), "thresholds": self.folder / "thresholds.h5"}
        return {"heads_table": self.folder / kind / "heads.parquet", **shards}

    @property
    def chosen(self) -> Path:
        return self.folder / "chosen_heads.json"

    def heads(self, kind: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / kind / "heads.parquet")

    def token_values(self, kind: str, *names: str) -> list[np.ndarray]:
        """Values of all shards [head, prompt, pos], read by themselves."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for path in self.ablations(kind):
            with open_hdf5(path, "ablations") as dataset:
                for name in names:
                    found[name].append(dataset[name].values)
        return [np.concatenate(parts, axis=0 if name == "clean_scale" else 1) for name, parts in found.items()]

    def top_tokens(self) -> np.ndarray:
        """Top tokens [head, prompt, pos] by what the file says."""
        with open_hdf5(self.folder / "thresholds.h5", "thresholds") as dataset:
            return dataset["top_tokens"].values.reshape(N_HEADS, len(self.tokens), LENGTH - 1).astype(bool)


def make_planted_run(folder: Path) -> PlantedRun:
    """Measure the planted model, and condense its ablations."""
    tokens = np.repeat(np.array(QUIET)[:, None], LENGTH, axis=1)
    made = PlantedRun(folder, tokens)
    manifest = save_planted_model(folder / "model")
    with write_hdf5(folder / "tokens.h5", kind="tokens", provenance={}, attrs={"prompts_per_shard": IN_SHARD}) as file:
        file.dims(prompt=len(tokens), pos=LENGTH, donor=1)
        file.put("tokens", ("prompt", "pos"), tokens)
        file.put("donors", ("prompt", "donor"), assign_donors(len(tokens), IN_SHARD, 1))
    shards = [(first, first + IN_SHARD) for first in range(0, len(tokens), IN_SHARD)]
    common = {"model_manifest": manifest, "tokens": folder / "tokens.h5", "compute": COMPUTE, "provenance": {}}
    activations = [folder / "activations" / f"{first}.h5" for first, _ in shards]
    for prompts, out in zip(shards, activations, strict=True):
        cache_activations(out=out, prompts=prompts, keep=True, **common)
    thresholds = folder / "thresholds.h5"
    find_thresholds(shards=activations, out=thresholds, top_fraction=TOP, first_position=0, provenance={})
    average_activations(shards=activations, out=folder / "mean.h5", provenance={})
    write_json(made.chosen, {"heads": [HEAD, (0, 1)]})
    for kind in ABLATION_KINDS:
        (folder / kind).mkdir()
        mean = folder / "mean.h5" if kind == "mean" else None
        for cached, prompts, out in zip(activations, shards, made.ablations(kind), strict=True):
            inputs = {
                "model": manifest,
                "tokens": folder / "tokens.h5",
                "activations": cached,
                "thresholds": thresholds,
            }
            with open_shard({**inputs, "mean_activations": mean}, prompts=prompts, compute=COMPUTE) as shard:
                measure_ablations(shard, kind=kind, heads=None, which="all", out=out, provenance={})
                frozen = out.with_name(f"frozen_{out.name}")
                measure_frozen_layernorm(shard, kind=kind, heads=[HEAD, (0, 1)], out=frozen, provenance={})
        tabulate_heads(
            model_manifest=manifest,
            shards=made.ablations(kind),
            thresholds=thresholds,
            tables={name: folder / kind / f"{name}.parquet" for name in ("heads", "layers", "model")},
            labels={"model": "planted", "corpus": "repeats", "ablation": kind, "top_fraction": TOP, "donors": 1},
            first_position=0,
            n_bootstrap=40,
            bootstrap_seed=0,
        )
    return made
