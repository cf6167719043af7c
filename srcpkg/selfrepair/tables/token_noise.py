"""How much of what a head does is one token's: tokens of the chosen heads, and how far self-repair spreads over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.tables.counted_tokens import read_ablations, unchanged
from selfrepair.tables.sample import Sample
from selfrepair.tables.statistics import Resamples, Totals, prompt_sums, with_interval

TOKEN_COLUMNS = ("direct_effect", "logit_change", "self_repair")
QUANTILES = (0.1, 0.5, 0.9)


def tabulate_token_noise(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    tokens_out: Path,
    heads_out: Path,
) -> None:
    """Write tokens of the chosen heads, a row a (head, token), and how self-repair spreads over each head's top tokens.

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads (`selfrepair.measure.chosen_heads`).
        tokens_out: Parquet file; a CSV is written beside it. Every token, or the same sample of them for each head
            (`selfrepair.tables.sample`).
        heads_out: Likewise, a row a head, over all of its top tokens: self_repair_q10 and so on, the quantiles of self-repair
            in logits; the shares ``broken`` (self-repair below zero) and ``overcorrected`` (the logit rises), with intervals;
            what is rounding alone is neither.

    Raises:
        ValueError: Ablations that hold top tokens alone.
    """
    run = read_settings(heads_table)
    if run["tokens"] != "all":
        raise ValueError("these ablations hold top tokens alone: set ablations.*.tokens to all to list every token")
    chosen = read_chosen_heads(chosen_heads)
    layer, head = np.array(chosen).T
    listed, totals = Sample(run["bootstrap_seed"]), Totals(Resamples.of_run(run))
    # Bytes, end to end: an array a shard would take several times as much.
    repair_of_top = [bytearray() for _ in chosen]
    for shard in read_ablations(shards, thresholds, run["first_position"], chosen, chosen_heads):
        values = {name: shard.dataset[name].values for name in TOKEN_COLUMNS}
        top = shard.counted["top"]
        # The same tokens of every head.
        prompt, pos = np.nonzero(shard.counted["all"][0])
        columns = {name: value[:, prompt, pos].T for name, value in {**values, "selected": top}.items()}
        listed.add({"prompt": prompt + shard.first, "pos": pos, **columns})
        changed = ~unchanged(shard.dataset)
        shares = {
            "broken": (values["self_repair"] < 0) & changed,
            "overcorrected": (values["logit_change"] > 0) & changed,
        }
        totals.add(prompt_sums(shares, top))
        repair = values["self_repair"]
        for row, of_head in enumerate(repair_of_top):
            of_head += repair[row][top[row]].tobytes()
    ranks = {"rank": np.arange(1, len(chosen) + 1), "layer": layer, "head": head}
    rows = listed.rows()
    prompt, pos = rows.pop("prompt"), rows.pop("pos")
    table = {
        **{name: np.repeat(of, len(prompt)) for name, of in ranks.items()},
        **{name: np.tile(of, len(chosen)) for name, of in (("prompt", prompt), ("pos", pos))},
        **{name: of.T.ravel() for name, of in rows.items()},
    }
    write_table(pd.DataFrame(table), tokens_out, {**run, **listed.settings})
    quantiles = np.array([np.quantile(np.frombuffer(of, repair.dtype), QUANTILES) for of in repair_of_top]).T
    spread = {
        **ranks,
        "n_tokens": totals.n_tokens,
        "n_prompts": totals.n_prompts,
        **{f"self_repair_q{100 * at:.0f}": of for at, of in zip(QUANTILES, quantiles, strict=True)},
        **with_interval({name: totals.mean(name) for name in ("broken", "overcorrected")}),
    }
    write_table(pd.DataFrame(spread), heads_out, run)
