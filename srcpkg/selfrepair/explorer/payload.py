"""All that a page holds of its runs, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfrepair.explorer.packing import STEP, as_json, deflate, pack, records, remainders
from selfrepair.explorer.repairs import strongest_repairers
from selfrepair.explorer.texts import Pieces
from selfrepair.explorer.tokens import TokenValues, read_tokens
from selfrepair.files.hdf5 import open_hdf5
from selfrepair.files.tables import read_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.snapshots.encoding import read_encoder

BUDGET = 12_400_000
"""Characters of a page that values of tokens may take, of all runs together."""
AT_MOST = 1_500_000
"""(head, token) pairs that are read for the page: more than ever go into it."""
AROUND = (24, 9)
"""Tokens before and after one of a head's best tokens, where its prompt is not in the sample."""


@dataclass(frozen=True)
class RunFiles:
    """Files of a run that the page is made of.

    Attributes:
        model, corpus: Their names in the config.
        kinds: Kinds of ablation, the main one first.
        tables: By kind and name, tables.
        shards: By kind, ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        tokens: Prompts.
        chosen_heads: Heads that were looked at one by one.
        snapshot: The model's folder, with its tokenizer.
    """

    model: str
    corpus: str
    kinds: Sequence[str]
    tables: Mapping[str, Mapping[str, Path]]
    shards: Mapping[str, Sequence[Path]]
    thresholds: Path
    tokens: Path
    chosen_heads: Path
    snapshot: Path


def of_runs(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """What the page holds of each run; of more tokens than it has room for, those of a sample of prompts."""
    return [of_run(files, share=1 / len(runs)) for files in runs]


def of_run(files: RunFiles, share: float) -> dict[str, Any]:
    """What the page holds of a run.

    Args:
        files: Its files.
        share: Of the page's room for values of tokens.
    """
    tables = {kind: {name: read_table(path) for name, path in of.items()} for kind, of in files.tables.items()}
    run = dict(tables[files.kinds[0]]["heads"].attrs)
    n_prompts, positions = int(run["n_prompts"]), int(run["prompt_length"]) - 1
    order = np.random.default_rng(int(run["bootstrap_seed"])).permutation(n_prompts)
    n_heads = sum(len(tables[kind]["heads"].drop_duplicates(["layer", "head"])) for kind in files.kinds)
    read = np.sort(order[: max(1, int(AT_MOST * share / (n_heads * positions)))])
    values = {
        kind: read_tokens(files.shards[kind], files.thresholds, int(run["first_position"]), read)
        for kind in files.kinds
    }
    held = set(read.tolist())
    sample = [prompt for prompt in order.tolist() if prompt in held]
    prompts, packed = _fitting(values, sample, BUDGET * share)
    pieces = Pieces(read_encoder(files.snapshot).tokenizer)
    with open_hdf5(files.tokens, "tokens") as dataset:
        tokens = dataset["tokens"]
        texts = [pieces.of(tokens[prompt].values.tolist()) for prompt in prompts.tolist()]
        kinds = {}
        for kind, of in values.items():
            repairers = strongest_repairers(files.shards[kind], tables[kind]["heads"].attrs)
            kinds[kind] = {
                "tables": _deflated({**tables[kind], "repairers": repairers}),
                "heads": of.heads,
                "stored": [[each.name, list(each.plus), list(each.minus)] for each in of.stored()],
                "values": packed[kind],
                "best": of.best.tolist(),
                "best_values": pack(list(remainders(of.best_steps, of.stored()).values())),
                "around": _around(of, set(prompts.tolist()), tokens, pieces),
            }
    return {
        "id": f"{files.model}/{files.corpus}",
        "model": files.model,
        "corpus": files.corpus,
        "settings": {str(key): _listed(value) for key, value in run.items()},
        "chosen": [list(head) for head in read_chosen_heads(files.chosen_heads)],
        "neuron_layer": _neuron_layer(tables[files.kinds[0]]),
        "step": STEP,
        "positions": positions,
        "prompts": prompts.tolist(),
        "pieces": pieces.list,
        "texts": pack([np.array(texts)]),
        "kinds": kinds,
    }


def _neuron_layer(tables: Mapping[str, pd.DataFrame]) -> int | None:
    """Whose MLP's neurons were looked at."""
    found = tables["erasure_quadrants"].attrs.get("neuron_layer") if "erasure_quadrants" in tables else None
    return None if found is None else int(found)


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _fitting(
    values: Mapping[str, TokenValues], order: Sequence[int], room: float
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """As many prompts, in the order of the sample, as there is room for: their numbers, and values by kind and head."""
    keep = len(order)
    while True:
        prompts = np.sort(np.array(order[:keep]))
        packed = {kind: _packed(of.first(prompts)) for kind, of in values.items()}
        size = sum(len(text) for of in packed.values() for text in of)
        if size <= room or keep == 1:
            return prompts, packed
        keep = max(1, min(keep - 1, int(keep * room / size)))


def _packed(values: TokenValues) -> list[str]:
    """Of each head its quantities, then which of its tokens are top tokens."""
    stored, found = values.stored(), []
    for row in range(len(values.heads)):
        rest = remainders({name: of[row] for name, of in values.steps.items()}, stored)
        found.append(pack([*rest.values(), values.top[row].astype(np.int32)]))
    return found


def _around(values: TokenValues, sampled: set[int], tokens: Any, pieces: Pieces) -> dict[str, Any]:
    """Text around those of the heads' best tokens whose prompt is not in the sample, by prompt and position."""
    found: dict[str, Any] = {}
    for prompt, pos in np.unique(values.best.reshape(-1, 2), axis=0).tolist():
        if prompt >= 0 and prompt not in sampled:
            first = max(0, pos - AROUND[0])
            window = tokens[prompt].values[: pos + AROUND[1]].tolist()
            found[f"{prompt}.{pos}"] = [first, pieces.of(window)[first:]]
    return found


def _deflated(tables: Mapping[str, Any]) -> str:
    """Tables, exactly, as deflated JSON."""
    return deflate(as_json({name: records(table) for name, table in tables.items()}).encode())
