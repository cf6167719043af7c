"""Heads ablated with each of several donors alone: what of a result is the donor's, and what the token's.

A prompt's donors are the next prompts of its shard, in a ring (docs/definitions.md, Ablations).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from selfrepair.engine.heads import Heads, check_heads
from selfrepair.engine.proof import prove_heads
from selfrepair.engine.sweep import arrays, sweep
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.shard import Shard
from selfrepair.measure.tokens import assign_donors


def measure_donor_noise(shard: Shard, *, heads: Heads, donors: int, out: Path, provenance: dict[str, Any]) -> None:
    """Ablate heads on their top tokens with each of several donors alone.

    Args:
        shard: With thresholds.
        heads: The (layer, head) pairs.
        donors: How many; donor k of a prompt is the k-th prompt after it in its shard, in a ring.
        out: HDF5 file: what an ablation gives [donor, head, prompt, pos], NaN where a token is none of the head's top tokens.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The shard holds fewer other prompts.
    """
    model, heads = shard.model, check_heads(shard.model, heads)
    selected = shard.top_tokens(heads)
    n_prompts = len(shard.tokens)
    ring = assign_donors(n_prompts, n_prompts, donors)
    repeats = shard.repeats("ablations with several donors", "resample", heads, np.asarray(selected.any(-1)))
    proven = int(repeats.proof.rng.integers(donors))  # with one of the donors
    found: list[list[xr.Dataset]] = [[] for _ in range(donors)]
    for batch in shard.batches(f"{donors} donors", "head", donors * len(heads)):
        of_batch = selected[:, batch.rows]
        for donor in range(donors):
            alone = replace(batch, donors=ring[batch.rows, donor : donor + 1])
            z = alone.replacement("resample")
            part = sweep(model, batch.tokens, batch.clean, z, heads, batch.progress, of_batch, only_selected=True)
            if donor == proven:
                prove_heads(repeats.proof, repeats.of(alone), {**arrays(part), "selected": of_batch})
            found[donor].append(part[list(model.quantities)])
    dataset = xr.concat([xr.concat(parts, dim="prompt") for parts in found], dim="donor")
    attrs = {"coordinates": "layer head_index", **repeats.proof.attrs()}
    with write_hdf5(out, kind="donor_noise", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(dataset, chunk={"donor": 1, "head": 1})
