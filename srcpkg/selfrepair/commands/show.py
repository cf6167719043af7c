"""`selfrepair show`: one head of a run, in numbers and on its tokens."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from selfrepair.commands.options import Head, Json, Kind, Run, examples
from selfrepair.commands.output import (
    console,
    in_context,
    interval,
    number,
    print_json,
    print_table,
    say,
    signed,
    table,
)
from selfrepair.commands.quantities import NOISE, NOISE_TOLD, check_quantity, heading, parts_of
from selfrepair.model.head_names import parse_head
from selfrepair.quantities import HEAD_TOKEN, NOISE_OF, QUANTITIES, SELECTIONS, held
from selfrepair.workflow.config import RESULTS

if TYPE_CHECKING:
    import pandas as pd

    from selfrepair.run.opened import Run as OpenRun

LEAST_TEXT = 40
"""Cells of a terminal that a token's text wants; where less is left, columns go."""


@examples(
    "selfrepair show 26.8",
    "selfrepair show L26H8 --by self_repair --lowest --tokens 5 --json",
    "selfrepair show 26.8 results/smollm2-135m-instruct/wikipedia --kind zero",
)
def show(
    head: Head,
    run: Run = RESULTS,
    by: Annotated[str, typer.Option(help="Quantity that the head's top tokens are sorted by.")] = "direct_effect",
    lowest: Annotated[bool, typer.Option("--lowest", help="The lowest first.")] = False,
    tokens: Annotated[int, typer.Option(min=0, help="How many of its top tokens are shown; 0 for all.")] = 10,
    repairs: Annotated[int, typer.Option(min=0, help="How many components that repair it are shown; 0 for all.")] = 8,
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Show one head: its numbers with intervals, what repairs it, and its best tokens in their text.

    A token's text ends in the correct next token, in brackets: the one whose logit all quantities are about.
    """
    from selfrepair.run.opened import open_run

    layer, index = parse_head(head)
    opened = open_run(run)
    kind = kind or opened.main_kind
    of_head = opened.head(layer, index, kind)
    every = opened.table("heads", kind)
    means = {
        selection: opened.head(layer, index, kind, selection) for selection in held(SELECTIONS, set(every["selection"]))
    }
    repaired = opened.repairs(layer, index, kind)
    order = repaired["repair"].abs().sort_values(ascending=False, kind="stable").index
    repaired = repaired.loc[order].reset_index(drop=True)
    # Of those that are shown alone the texts are read.
    of_tokens = opened.tokens(layer, index, kind, "top", texts=False)
    check_quantity(by, held(HEAD_TOKEN, of_tokens.columns))
    best = of_tokens.sort_values(by, ascending=lowest, kind="stable", na_position="last")
    best = best.head(tokens) if tokens else best
    shown = repaired.head(repairs) if repairs else repaired
    if as_json:
        print_json(
            {
                **{"folder": opened.folder, "model": opened.model, "corpus": opened.corpus, "kind": kind},
                **{"layer": layer, "head": index, "settings": opened.settings},
                "means": {selection: row.to_dict() for selection, row in means.items()},
                "repairs": shown.to_dict("records"),
                "tokens": [_with_text(opened, row) for row in best.to_dict("records")],
            }
        )
        return
    out = console()
    say(
        out,
        f"L{layer}H{index} of {opened.model} on {opened.corpus}, {kind} ablation: {int(of_head['n_tokens'])} top tokens of "
        f"{int(of_head['n_prompts'])} prompts. In logits, with 95% intervals over prompts.",
    )
    _show_means(out, means)
    _show_repairs(out, shown, len(repaired))
    _show_tokens(out, opened, best, int(of_head["n_tokens"]), by, lowest)


def _show_means(out: Console, means: dict[str, "pd.Series"]) -> None:
    titles = {
        "top": ("top\ntokens", "95%\ninterval", NOISE),
        "all": ("all\ntokens", "their 95%\ninterval", f"their {NOISE}"),
    }
    noisy = any(str(name).startswith(NOISE_OF) for row in means.values() for name in row.index)
    columns = [name for selection in means for name in titles[selection][: 3 if noisy else 2]]
    rows = table("mean over", *columns)
    first = next(iter(means.values()))
    for name in (name for name in QUANTITIES if f"{name}_low" in first.index):
        cells: list[Any] = []
        for row in means.values():
            ends, noise = (row[f"{name}_low"], row[f"{name}_high"]), row.get(NOISE_OF + name)
            cells += [signed(row[name], *ends, noise=noise or 0), interval(*ends)]
            cells += [number(noise) if noise is not None else ""] if noisy else []
        rows.add_row(_label(name), *cells)
    out.print()
    print_table(out, rows, columns[1:])
    if noisy:
        say(out, NOISE_TOLD, "dim")


def _label(name: str) -> str:
    """A quantity's name, short enough for a column of names."""
    return QUANTITIES[name].label.replace("clipped fraction of direct effect", "clipped fraction")


def _show_repairs(out: Console, shown: "pd.DataFrame", n_rows: int) -> None:
    names = {"postnorms": "post-norms", "layernorm": "final norm"}
    rows = table("what repairs it", "repair", "95%\ninterval")
    for _, row in shown.iterrows():
        if row["by"] == "head":
            name = f"L{int(row['by_layer'])}H{int(row['by_head'])}"
        else:
            name = f"MLP {int(row['by_layer'])}" if row["by"] == "mlp" else names[row["by"]]
        ends = row["repair_low"], row["repair_high"]
        rows.add_row(name, signed(row["repair"], *ends), interval(*ends))
    out.print()
    out.print(rows)
    if len(shown) < n_rows:
        say(out, f"The {len(shown)} largest of {n_rows}, of either sign; all add up to its self-repair.", "dim")


def _show_tokens(out: Console, run: "OpenRun", best: "pd.DataFrame", n_tokens: int, by: str, lowest: bool) -> None:
    quantities = ["direct_effect", "logit_change", "self_repair", *parts_of(best.columns)]
    quantities = quantities if by in quantities else [by, *quantities]
    while len(quantities) > 3 and out.width - 8 * len(quantities) - 9 < LEAST_TEXT:
        quantities.pop()
    room = max(out.width - 8 * len(quantities) - 9, LEAST_TEXT)
    rows = table("prompt:\npos", *map(heading, quantities), "text, and [the correct next token]")
    rows.columns[-1].justify = "left"
    for _, row in best.iterrows():
        text = run.text(int(row["prompt"]))
        at = int(row["pos"])
        cells = [signed(row[name]) if name == "self_repair" else number(row[name]) for name in quantities]
        rows.add_row(f"{int(row['prompt'])}:{at}", *cells, in_context(text[: at + 1], text[at + 1], room))
    out.print()
    out.print(rows)
    if len(best) < n_tokens:
        which = "lowest" if lowest else "highest"
        say(out, f"The {len(best)} of its {n_tokens} top tokens with the {which} {by}.", "dim")


def _with_text(run: "OpenRun", row: dict[Any, Any]) -> dict[Any, Any]:
    """A token's row with its text, the correct token, and the text before that."""
    text, at = run.text(int(row["prompt"])), int(row["pos"])
    return {**row, "token": text[at], "correct_token": text[at + 1], "text": "".join(text[: at + 1])}
