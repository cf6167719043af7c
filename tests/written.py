"""Measured files and head tables of made-up numbers, written as jobs write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from selfrepair.files.hdf5 import write_hdf5
from selfrepair.files.tables import write_table
from selfrepair.tables.statistics import Resamples, Totals


def write_settings(path: Path, **attrs: Any) -> Path:
    """A table "heads" for the settings that it carries: six prompts, 50 resamples, or as ``attrs`` say."""
    run = {"ablation": "resample", "parallel_attention_mlp": False, "first_position": 0, "n_prompts": 6}
    write_table(pd.DataFrame({"layer": [0]}), path, {**run, "n_bootstrap": 50, "bootstrap_seed": 0, **attrs})
    return path


def write_ablations(path: Path, dataset: xr.Dataset) -> Path:
    with write_hdf5(path, kind="ablations", provenance={}, attrs={"tokens": "top"}) as file:
        file.put_dataset(dataset)
    return path


def write_thresholds(path: Path, selected: np.ndarray) -> Path:
    """Top tokens of heads in order, 4 a layer."""
    top = selected.reshape(-1, 4, *selected.shape[1:]).astype(np.uint8)
    dims = ("layer", "head", "prompt", "predicting_pos")
    with write_hdf5(path, kind="thresholds", provenance={}, attrs={"n_top": int(selected[0].sum())}) as file:
        file.dims(**dict(zip(dims, top.shape, strict=True)))
        file.put("top_tokens", dims, top)
    return path


def totals_of(values: dict[str, np.ndarray], resamples: Resamples) -> Totals:
    """Sums over prompts that come all at once."""
    totals = Totals(resamples)
    totals.add(values)
    return totals


def write_moved(path: Path, moved: np.ndarray, heads: list[tuple[int, int]]) -> Path:
    with write_hdf5(path, kind="moved_residual", provenance={}) as file:
        file.dims(head=len(heads), prompt=moved.shape[1], next_head=moved.shape[2])
        file.put("layer", ("head",), np.array([layer for layer, _ in heads]))
        file.put("head_index", ("head",), np.array([head for _, head in heads]))
        file.put("moved_change", ("head", "prompt", "next_head"), moved)
    return path


def repair_of(by_head: np.ndarray, by_mlp: np.ndarray, counts: np.ndarray, heads: list[tuple[int, int]]) -> xr.Dataset:
    """Sums by prompt, as ablations files hold them."""
    return xr.Dataset(
        {
            "repair_by_head": (("head", "prompt", "by_layer", "by_head"), by_head),
            "repair_by_mlp": (("head", "prompt", "by_layer"), by_mlp),
            "n_selected": (("head", "prompt"), counts),
            "layer": (("head",), np.array([layer for layer, _ in heads])),
            "head_index": (("head",), np.array([head for _, head in heads])),
        }
    )
