"""Activations averaged over the data set, which take a head's place in mean ablation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from selfrepair.files.hdf5 import open_hdf5, open_shards, write_hdf5


def average_activations(*, shards: Sequence[Path], out: Path, provenance: dict[str, Any]) -> None:
    """Average ``z`` over all prompts and positions of the data set, for mean ablation.

    Args:
        shards: Activations files.
        out: HDF5 file: mean_z [layer, head, d_head].
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    total: np.ndarray | float = 0.0
    count = 0
    dtype = np.dtype("float32")
    for dataset, _ in open_shards(shards, "activations"):
        dtype = dataset["head_direct_effect"].dtype
        total = total + dataset["z_sum"].values
        count += dataset.sizes["prompt"] * (dataset.sizes["predicting_pos"] + 1)
    mean = np.asarray(total / count, dtype)
    with write_hdf5(out, kind="mean_activations", provenance=provenance) as file:
        file.dims(layer=mean.shape[0], head=mean.shape[1], d_head=mean.shape[2])
        file.put("mean_z", ("layer", "head", "d_head"), mean, description="z averaged over all prompts and positions")


def read_mean_activations(path: Path) -> Float[np.ndarray, "layer head d_head"]:
    """The averages that `average_activations` wrote."""
    with open_hdf5(path, "mean_activations") as dataset:
        return dataset["mean_z"].values
