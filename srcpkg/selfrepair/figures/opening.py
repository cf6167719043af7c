"""What findings open with: ten lines at most, each with a link to its section, and how far so many tokens carry."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from selfrepair.figures import module_of
from selfrepair.figures.style import inputs
from selfrepair.figures.wording import percentage

ORDER = (
    "self_repair_by_layer",
    "published_comparison",
    "repair_breakdown",
    "layernorm_claim",
    "neuron_concentration",
    "who_repairs_whom",
    "effect_vs_logit_change",
    "token_noise",
    "selection_control",
    "models_by_layer",
    "models_and_published",
)
"""The figures that the opening tells of, each with `in_short(tables)`: lines of Markdown, without a link.

Those that come first are left out last where there are more than `LINES`.
"""
LINES = 10

REACH = "How far this carries"
FEW_PROMPTS = 20
"""With fewer prompts than this a bootstrap over prompts is told to be rough itself."""
SHARE = "pooled_repair_fraction"


def opening(tables: Mapping[str, inputs.Tables], run: Mapping[Any, Any]) -> list[str]:
    """The lines that findings open with.

    Args:
        tables: By figure, its tables; figures that a run does not have are left out.
        run: The run's settings.

    Raises:
        ValueError: A table lacks what a line states.
    """
    lines = [(line, name) for name in ORDER if name in tables for line in module_of(name).in_short(tables[name])]
    told = [f"{line} ({link(name)})" for line, name in lines[: LINES - 1]]
    return [*told, f"{_reach_in_short(run)} ({link(REACH)})"]


def link(heading: str) -> str:
    """A link to a heading of the same file, as forges and docs sites make their anchors."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return f"[{heading}](#{kept.replace(' ', '-')})"


def reach(model: pd.DataFrame, run: Mapping[Any, Any]) -> list[str]:
    """What the intervals cover and what they do not, in lines of Markdown.

    Args:
        model: Table "model" of the main kind; of several models, a row each.
        run: The run's settings.
    """
    return list(_reach(model, run))


def _reach_in_short(run: Mapping[Any, Any]) -> str:
    n_tokens, n_prompts = int(run["n_tokens"]), int(run["n_prompts"])
    return (
        f"**{n_tokens:,} tokens of {n_prompts:,} prompts carry this far**: intervals say what other prompts of the same text "
        "would move, not what another text, other donors or prompts of another length would; with four times as many tokens "
        "they would be about half as wide."
    )


def _reach(model: pd.DataFrame, run: Mapping[Any, Any]) -> Iterator[str]:
    n_tokens, n_prompts = int(run["n_tokens"]), int(run["n_prompts"])
    yield (
        f"Intervals come from drawing the {n_prompts:,} prompts anew, with replacement. They say how far other prompts of "
        f"{run['corpus']}, cut in the same way, would move a number."
    )
    level = 100 * float(run["confidence"])
    yield (
        "They do not cover another text, other donors than the one draw of this run, prompts of another length than "
        f"{run['prompt_length']} tokens, another choice of top tokens, or what choosing the largest of many does: the largest "
        f"layer, head or pair is likely too large. Of 100 intervals at {level:g}%, some {100 - level:.0f} are expected to "
        "miss, and nothing is done about their number."
    )
    row = model[model["selection"] == "top"].iloc[0]
    whose = f" of {row['model']}" if "model" in row.index else ""
    width = 100 * float(row[f"{SHARE}_high"] - row[f"{SHARE}_low"])
    yield (
        f"They narrow as 1 / √n: with four times the prompts ({4 * n_prompts:,}; {4 * n_tokens:,} tokens) they would be about "
        f"half as wide. The interval of the share restored{whose}, {percentage(row, SHARE)}, would be some "
        f"{_points(width / 2)} percentage points wide in place of {_points(width)}. That holds for means over many tokens. A "
        "mean that a few tokens carry is known less well than its interval says."
    )
    if n_prompts < FEW_PROMPTS:
        yield (
            f"With {n_prompts:,} prompts the bootstrap is rough itself, and its intervals are likely too narrow: read this run "
            "as a trial."
        )
    if not (model["selection"] == "all").any():
        yield (
            f"The {run['ablation']} ablation computed each head's top tokens alone, so that nothing is said of all tokens "
            "under it."
        )


def _points(width: float) -> str:
    return f"{width:.0f}" if width >= 1 else f"{width:.1g}"
