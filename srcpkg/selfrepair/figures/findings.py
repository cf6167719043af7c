"""The run's findings in words: a Markdown file with a section a figure, every number read from the figure's tables."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selfrepair.figures import module_of, read_tables
from selfrepair.figures.opening import REACH, opening, reach
from selfrepair.files.sealed import write_text

OF_WHOLE = ("self_repair_by_layer", "models_by_layer")
"""The figures whose table "model" has the means over all heads."""

INTRODUCTION = (
    "One section a figure. Every number is read from the tables that the section names, by code. In brackets: {level:g}% "
    "intervals, by a bootstrap over prompts where the text says nothing else. *Top tokens* of a head are the {top:g}% of all "
    "tokens on which its direct effect is largest. What the paper (Rushing & Nanda 2024, arXiv 2402.15390) reports stands "
    "beside each; its models and text are others, and it gives no intervals."
)


def write_findings(
    *, heads: Path, checks: Path, tables: Mapping[str, Mapping[str, Path]], figures: Sequence[Path], out: Path
) -> None:
    """Write what every figure shows as Markdown.

    Args:
        heads: Table "heads" of the main kind of ablation, whose settings head the file.
        checks: Table "checks" (`selfrepair.tables.checks`).
        tables: By figure, the file of each table that it takes.
        figures: The figures' PNG files, in the same order.
        out: Markdown file.

    Raises:
        ValueError: A table lacks what a finding states.
    """
    settings = read_tables({"heads": heads, "checks": checks})
    run = settings["heads"].attrs
    of_figures = {name: read_tables(files) for name, files in tables.items()}
    several = isinstance(run["model"], list)
    model = next(of["model"] for name, of in of_figures.items() if name in OF_WHOLE and "model" in of)
    parts = [
        f"# Findings: {'all models' if several else run['model']} on {run['corpus']}",
        "\n".join(f"{number}. {line}" for number, line in enumerate(opening(of_figures, run), start=1)),
        _head(run, f"{_checked(settings['checks'])} ({_link(checks.with_suffix('.csv'), out)})"),
        "\n".join([f"## {REACH}", "", *(f"- {line}" for line in reach(model, run))]),
    ]
    for (name, files), picture in zip(tables.items(), figures, strict=True):
        lines = module_of(name).finding(of_figures[name])
        parts.append("\n".join([f"## {name}", "", *(f"- {line}" for line in lines), "", _sources(picture, files, out)]))
    write_text(out, "\n\n".join(parts) + "\n")


def _head(run: Mapping[Any, Any], checks: str) -> str:
    first = int(run["first_position"])
    counted = "position 0 counted" if first == 0 else f"positions below {first} left out"
    keys = ("model", "weights", "n_layers", "n_heads")
    # Of several models, each of these is a list (`selfrepair.tables.all_models`).
    several = isinstance(run["model"], list)
    each = zip(*(run[key] if several else [run[key]] for key in keys), strict=True)
    models = ["{} ({}), {} layers of {} heads".format(*of_model) for of_model in each]
    facts = {
        "Models" if several else "Model": "; ".join(models),
        "Text": f"{run['corpus']}, {run['n_tokens']:,} tokens",
        "Prompts": f"{run['n_prompts']:,} of {run['prompt_length']} tokens, {counted}",
        "Ablation": f"{run['ablation']} where a line names no other, {run['donors']} donor{'s' * (run['donors'] > 1)} a prompt",
        "Top tokens": f"{100 * run['top_fraction']:g}% of all tokens, for each head its own",
        "Intervals": f"{100 * run['confidence']:g}%, {run['n_bootstrap']:,} resamples, seed {run['bootstrap_seed']}",
        "Checked": checks,
    }
    if "logit_cap" in run:
        cap = run["logit_cap"]
        of = "the caps that some models put" if isinstance(cap, list) else f"the cap of {cap:g} that the model puts"
        facts["Logits"] = f"before {of} on them; with it: `capped_logit_change` of table heads"
    rows = [f"| {name} | {text} |" for name, text in facts.items()]
    introduction = INTRODUCTION.format(level=100 * run["confidence"], top=100 * run["top_fraction"])
    return "\n".join(["| | |", "|---|---|", *rows, "", introduction])


def _checked(table: pd.DataFrame) -> str:
    """Table "checks" in a sentence."""
    measured = int((table["repeated"] > 0).sum())  # all but neurons of a mixture of experts
    return (
        f"{table['repeated'].sum():,} ablations in {measured} measurements repeated by plain runs of the whole model, "
        f"{table['numbers'].sum():,} numbers, largest difference {table['largest_difference'].max():.1g} logits"
    )


def _sources(picture: Path, files: Mapping[str, Path], out: Path) -> str:
    """Links to a figure and to its tables, as CSV."""
    named = dict.fromkeys(path.with_suffix(".csv") for path in files.values())
    links = ", ".join(_link(path, out) for path in named)
    return f"Figure: {_link(picture, out)}. Tables: {links}."


def _link(path: Path, out: Path) -> str:
    relative = Path(os.path.relpath(path, out.parent)).as_posix()
    return f"[{relative}]({relative})"
