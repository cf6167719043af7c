"""A shard of every kind of measured file, of any model's sizes, filled with made-up numbers: what condensing them costs.

No shard says which prompts it holds, so that one file stands for as many as are wanted: name it again and again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import write_hdf5
from selfrepair.files.sealed import write_json
from selfrepair.files.tables import write_table
from selfrepair.quantities import PARTS, POSTNORMS
from selfrepair.snapshots.manifest import MANIFEST, publish, staging

CHOSEN = 4
TOP = 0.02
PROOF = {"proof_ablations": 1, "proof_numbers": 1, "proof_largest_difference": 1e-6}
KINDS = (
    *("activations", "ablations", "frozen_layernorm", "neurons", "other_donor", "donor_noise", "reinforcement"),
    *("moved_residual", "layer_ablations"),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of a shard; ``positions`` predict a token."""

    layers: int
    heads: int
    prompts: int = 8
    positions: int = 127
    neurons: int = 1536
    best: int = 50

    @property
    def top(self) -> int:
        """Top tokens of a head in a shard: whole, so that all shards may be the same."""
        return max(1, int(TOP * self.prompts * self.positions))

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """Heads that are looked at one by one."""
        return [(layer, 0) for layer in range(max(0, self.layers - 1 - CHOSEN), self.layers - 1)]

    @property
    def top_fraction(self) -> float:
        """Of tokens, so that each shard has `top`, however many there are."""
        return (self.top + 1e-6) / (self.prompts * self.positions)


def make_shards(folder: Path, sizes: Sizes) -> dict[str, Path]:
    """Write a shard of each kind, and the files beside them.

    Returns:
        As `made` gives them.
    """
    rng = np.random.default_rng(0)
    files = made(folder)
    n_heads = sizes.layers * sizes.heads
    tokens = (sizes.prompts, sizes.positions)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def write(
        kind: str, dims: Mapping[str, int], variables: Mapping[str, tuple[str, np.ndarray]], **attrs: object
    ) -> None:
        with write_hdf5(files[kind], kind=kind, provenance={}, attrs={**PROOF, **attrs}) as file:
            file.dims(**dims)
            for name, (of, values) in variables.items():
                chunk = {dim: 1 for dim in of.split() if dim in ("head", "layer", "donor", "component")}
                file.put(name, of.split(), values, chunk=chunk)

    def labels(heads: list[tuple[int, int]], dim: str = "head") -> dict[str, tuple[str, np.ndarray]]:
        layer, head = np.array(heads).T
        return {"layer": (dim, layer), "head_index": (dim, head)}

    every = [(layer, head) for layer in range(sizes.layers) for head in range(sizes.heads)]
    chosen_rows = [every.index(pair) for pair in sizes.chosen]
    effects = noise(n_heads, *tokens)
    dims = {"prompt": sizes.prompts, "predicting_pos": sizes.positions}
    by_layer = effects.reshape(sizes.layers, sizes.heads, *tokens)
    write(
        "activations",
        {"layer": sizes.layers, "head": sizes.heads, "d_head": 64, **dims},
        {
            "head_direct_effect": ("layer head prompt predicting_pos", by_layer),
            "z_sum": ("layer head d_head", rng.normal(size=(sizes.layers, sizes.heads, 64))),
        },
    )
    write(
        "other_donor",
        {"layer": sizes.layers, "head": sizes.heads, **dims},
        {"ablated_direct_effect": ("layer head prompt predicting_pos", noise(sizes.layers, sizes.heads, *tokens))},
    )
    values = {
        name: noise(n_heads, *tokens)
        for name in (*(part for part in PARTS if part != POSTNORMS), "ablated_direct_effect")
    }
    repair = sum(values[name] for name in values if name in PARTS)
    values |= {"direct_effect": effects, "self_repair": repair}
    values["logit_change"] = repair + values["ablated_direct_effect"] - effects
    values["ablated_scale"] = 1 + np.abs(noise(n_heads, *tokens))
    dims = {
        "head": n_heads,
        "prompt": sizes.prompts,
        "pos": sizes.positions,
        "by_layer": sizes.layers,
        "by_head": sizes.heads,
    }
    top = np.zeros((n_heads, sizes.prompts * sizes.positions), bool)
    order = np.argsort(-effects.reshape(n_heads, -1), axis=1, kind="stable")[:, : sizes.top]
    np.put_along_axis(top, order, True, axis=1)
    top = top.reshape(effects.shape)
    write(
        "ablations",
        dims,
        {
            **{name: ("head prompt pos", value) for name, value in values.items()},
            "clean_scale": ("prompt pos", 1 + np.abs(noise(*tokens))),
            "repair_by_head": (
                "head prompt by_layer by_head",
                noise(n_heads, sizes.prompts, sizes.layers, sizes.heads),
            ),
            "repair_by_mlp": ("head prompt by_layer", noise(n_heads, sizes.prompts, sizes.layers)),
            "n_selected": ("head prompt", top.sum(-1)),
            **labels(every),
        },
        ablation="resample",
        tokens="all",
        parallel_attention_mlp=0,
    )
    frozen = np.where(top, values["logit_change"] - values["self_repair_from_layernorm"], np.nan)[chosen_rows]
    dims = {"head": len(chosen_rows), "prompt": sizes.prompts, "pos": sizes.positions}
    write(
        "frozen_layernorm",
        dims,
        {
            "frozen_layernorm_logit_change": ("head prompt pos", frozen.astype(np.float32)),
            "rounding": ("head prompt pos", np.full(frozen.shape, 1e-3, np.float32)),
            **labels(sizes.chosen),
        },
    )
    several = np.where(top[chosen_rows], noise(4, len(chosen_rows), *tokens), np.nan).astype(np.float32)
    names = ("direct_effect", "ablated_direct_effect", "self_repair")
    write(
        "donor_noise",
        {"donor": 4, **dims},
        {**dict.fromkeys(names, ("donor head prompt pos", several)), **labels(sizes.chosen)},
    )
    row, prompt, pos = np.nonzero(top[chosen_rows])
    n_tokens = len(row)
    points = np.unique(np.geomspace(1, sizes.neurons, 43).astype(int))
    leading = np.argsort(rng.random((n_tokens, sizes.neurons)), axis=1)[:, : sizes.best]
    write(
        "neurons",
        {"token": n_tokens, "best": sizes.best, "point": len(points), "head_row": len(chosen_rows)},
        {
            **{name: ("token", value) for name, value in {"head": row, "prompt": prompt, "pos": pos}.items()},
            **{
                name: ("token", noise(n_tokens))
                for name in (
                    "head_direct_effect",
                    "mlp_direct_effect",
                    "mlp_ablated_direct_effect",
                    "total_absolute_change",
                )
            },
            "neuron": ("token best", leading),
            **{
                name: ("token best", noise(n_tokens, sizes.best)) for name in ("direct_effect", "ablated_direct_effect")
            },
            **{
                f"share_of_{name}": ("token point", noise(n_tokens, len(points)))
                for name in ("change", "repair", "direct_effect")
            },
            "neurons": ("point", points),
            **labels(sizes.chosen, "head_row"),
        },
        n_prompts=sizes.prompts,
        neuron_layer=sizes.layers - 1,
        n_neurons=sizes.neurons,
        top_percent=1,
    )
    by_prompt = (sizes.layers, sizes.heads, sizes.prompts)
    write(
        "reinforcement",
        {"layer": sizes.layers, "head": sizes.heads, "prompt": sizes.prompts, "added": 3, "scale": 3},
        {
            "n_selected": ("layer head prompt", top.sum(-1).reshape(by_prompt)),
            "scale": ("scale", np.array([1.0, 3.0, 5.0])),
            "direct_effect": ("layer head prompt", rng.normal(size=by_prompt)),
            "relative_length": ("layer head prompt", rng.normal(size=by_prompt)),
            "reinforced_direct_effect": ("layer head prompt added scale", rng.normal(size=(*by_prompt, 3, 3))),
        },
    )
    write(
        "moved_residual",
        {"head": len(chosen_rows), "prompt": sizes.prompts, "next_head": sizes.heads},
        {
            "moved_change": ("head prompt next_head", rng.normal(size=(len(chosen_rows), sizes.prompts, sizes.heads))),
            **labels(sizes.chosen),
        },
    )
    names = (*names, "logit_change", *(part for part in PARTS if part != POSTNORMS))
    write(
        "layer_ablations",
        {"component": 2, "layer": sizes.layers, "prompt": sizes.prompts, "pos": sizes.positions},
        {name: ("component layer prompt pos", noise(2, sizes.layers, *tokens)) for name in names},
    )
    _write_model(files["model"], sizes)
    write_json(files["chosen_heads"], {"heads": sizes.chosen, "strongest": True})
    return files


def made(folder: Path) -> dict[str, Path]:
    """The files that `make_shards` has written, by kind; and "model", a manifest, and "chosen_heads"."""
    files = {kind: folder / f"{kind}.h5" for kind in KINDS}
    return {**files, "model": folder / "model" / MANIFEST, "chosen_heads": folder / "chosen_heads.json"}


def _write_model(manifest: Path, sizes: Sizes) -> None:
    """Write a snapshot of a model's config alone."""
    from transformers import LlamaConfig  # late: the jobs that are measured do without

    config = LlamaConfig(num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, hidden_size=64 * sizes.heads)
    with staging(manifest) as partial:
        config.save_pretrained(partial)
        publish(manifest, partial, {"kind": "model", "source": "made up", "license": "none", "weights": "none"})


def write_settings(path: Path, sizes: Sizes, n_shards: int, n_bootstrap: int) -> Path:
    """A table "heads", for the settings that other tables take over."""
    n_prompts = n_shards * sizes.prompts
    attrs = {
        **{
            "model": "made up",
            "weights": "none",
            "corpus": "noise",
            "ablation": "resample",
            "tokens": "all",
            "donors": 1,
        },
        **{"n_prompts": n_prompts, "prompt_length": sizes.positions + 1, "n_tokens": n_prompts * sizes.positions},
        **{
            "top_fraction": TOP,
            "first_position": 0,
            "n_bootstrap": n_bootstrap,
            "bootstrap_seed": 0,
            "confidence": 0.95,
        },
        **{"n_layers": sizes.layers, "n_heads": sizes.heads, "parallel_attention_mlp": False},
    }
    write_table(pd.DataFrame({"layer": [0]}), path, attrs)
    return path
