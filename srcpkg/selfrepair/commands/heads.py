"""`selfrepair heads`: the heads of a run, ranked."""

from typing import TYPE_CHECKING, Annotated

import typer

from selfrepair.commands.options import Json, Kind, Run, Selection, examples
from selfrepair.commands.output import console, interval, number, print_json, print_table, say, signed, table
from selfrepair.commands.quantities import NOISE, NOISE_TOLD, check_quantity, heading, parts_of
from selfrepair.quantities import NOISE_OF
from selfrepair.workflow.config import RESULTS

if TYPE_CHECKING:
    import pandas as pd

    from selfrepair.run.opened import Run as OpenRun


@examples(
    "selfrepair heads",
    "selfrepair heads --by direct_effect --top 5",
    "selfrepair heads results/smollm2-135m-instruct/wikipedia --layer 26 --json",
)
def heads(
    run: Run = RESULTS,
    by: Annotated[
        str, typer.Option(help="Quantity that heads are ranked by: a column of the table heads.")
    ] = "self_repair",
    lowest: Annotated[bool, typer.Option("--lowest", help="The lowest first.")] = False,
    top: Annotated[int, typer.Option("--top", "-n", min=0, help="How many are shown; 0 for all.")] = 20,
    layer: Annotated[int | None, typer.Option(min=0, help="Heads of this layer alone.")] = None,
    selection: Selection = "top",
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Rank the heads of a run by self-repair, or by another quantity; in logits, with 95% intervals over prompts."""
    from selfrepair.run.opened import open_run

    opened = open_run(run)
    found = opened.heads(kind, selection)
    check_quantity(by, [name for name in found.columns if f"{name}_low" in found.columns])
    if layer is not None:
        found = found[found["layer"] == layer]
        if found.empty:
            raise ValueError(
                f"--layer {layer} has no ablated heads: the model has layers 0 to {opened.settings['n_layers'] - 1}"
            )
    ranked = found.sort_values(by, ascending=lowest, kind="stable", na_position="last").reset_index(drop=True)
    shown = ranked.head(top) if top else ranked
    kind = kind or opened.main_kind
    if as_json:
        rows = shown.to_dict("records")
        what = {"folder": opened.folder, "model": opened.model, "corpus": opened.corpus, "kind": kind, "by": by}
        print_json({**what, "settings": opened.settings, "n_heads": len(found), "heads": rows})
    else:
        _show(opened, shown, len(found), by, selection, kind, lowest)


def _show(
    run: "OpenRun", shown: "pd.DataFrame", n_heads: int, by: str, selection: str, kind: str, lowest: bool
) -> None:
    out = console()
    over = "each head's top tokens" if selection == "top" else "all tokens"
    say(
        out,
        f"{run.model} on {run.corpus}, {kind} ablation: {len(shown)} of {n_heads} heads by {by}, the "
        f"{'lowest' if lowest else 'highest'} first. Means over {over}, in logits; the interval is of {by}.",
    )
    main = ["direct_effect", "logit_change", "self_repair"]
    names = [*(name for name in main if name != by), *(name for name in parts_of(shown.columns) if name != by)]
    ranged = "95%\ninterval"
    more = "pooled_repair_fraction"
    names += [more] if by != more else []
    noisy = NOISE_OF + by in shown.columns
    rows = table("head", heading(by), ranged, *([NOISE] if noisy else []), *map(heading, names))
    for _, row in shown.iterrows():
        ends, noise = (row[f"{by}_low"], row[f"{by}_high"]), row.get(NOISE_OF + by, 0)
        rows.add_row(
            f"L{int(row['layer'])}H{int(row['head'])}",
            signed(row[by], *ends, noise=noise),
            interval(*ends),
            *([number(noise)] if noisy else []),
            *(number(row[name]) for name in names),
        )
    print_table(out, rows, [heading(name) for name in names])
    if noisy:
        say(out, NOISE_TOLD, "dim")
