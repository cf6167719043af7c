"""`selfrepair compare`: two runs, head by head."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from selfrepair.commands.options import Json, Kind, OtherRun, Run, Selection, examples
from selfrepair.commands.output import console, interval, number, print_json, print_table, say, signed, table, visible
from selfrepair.commands.quantities import NOISE, check_quantity
from selfrepair.quantities import MEANS, NOISE_OF, QUANTITIES, SELECTIONS, held

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from selfrepair.run.opened import Run as OpenRun
    from selfrepair.tables.statistics import Resamples

PROMPTS_AT_ONCE = 64
CHOSEN_BY = "direct_effect"
"""What top tokens have the largest of."""
DEFINING = {
    "top": ("n_layers", "n_heads", "first_position", "top_fraction"),
    "all": ("n_layers", "n_heads", "first_position"),
}
"""Settings that say what a head or a mean over tokens is: where these differ there is nothing to compare."""


@examples(
    "selfrepair compare results/smollm2-135m-instruct/wikipedia elsewhere/results",
    "selfrepair compare results elsewhere/results --by logit_change --json",
)
def compare(
    run: Run,
    other: OtherRun,
    by: Annotated[str, typer.Option(help="The quantity that is compared.")] = "self_repair",
    top: Annotated[int, typer.Option("--top", "-n", min=0, help="How many heads are shown; 0 for all.")] = 20,
    selection: Selection = "top",
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Compare two runs head by head: a quantity in both, and its difference, the second run less the first.

    Differences have 95% bootstrap intervals over prompts. Prompts that are in both runs are drawn together, others apart. Runs
    of models of other shapes, or with top tokens chosen otherwise, are refused.
    """
    from selfrepair.run.opened import open_run

    runs = open_run(run), open_run(other)
    if runs[0].folder.resolve() == runs[1].folder.resolve():
        raise ValueError(f"{run} and {other} are one run: name two")
    kind = _common_kind(runs, kind)
    _check_selection(runs, kind, selection)
    check_quantity(by, (*held(MEANS, runs[0].heads(kind, selection).columns), "pooled_repair_fraction"))
    check_quantity(by, (*held(MEANS, runs[1].heads(kind, selection).columns), "pooled_repair_fraction"))
    resamples, shared = draw_prompts(runs)
    together = [len(each.prompts) for each in runs] == [shared, shared]
    heads, overall = differences(runs, kind, by, selection, resamples)
    noisy = add_noise(heads, overall, [each.heads(kind, selection) for each in runs], by)
    ablated = [len(each.heads(kind, selection)) for each in runs]
    settings = _differing(runs)
    order = heads["difference"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    ranked = heads.loc[order].reset_index(drop=True)
    shown = ranked.head(top) if top else ranked
    apart = int(_is_apart(heads).sum())
    if as_json:
        print_json(
            {
                "runs": [each.folder for each in runs],
                **{"kind": kind, "selection": selection, "by": by},
                **{"same_prompts": together, "shared_prompts": shared},
                "settings": {name: list(values) for name, values in settings.items()},
                **{"n_heads": len(heads), "interval_without_zero": apart, "mean": overall},
                "heads": shown.to_dict("records"),
            }
        )
        return
    out = console()
    for name, each in zip(("first", "second"), runs, strict=True):
        say(out, f"{name + ':':8}{each.folder}")
    out.print()
    _show_settings(out, settings)
    out.print()
    over = "each head's top tokens" if selection == "top" else "all tokens"
    unit = f", in {QUANTITIES[by].unit}" if QUANTITIES[by].unit else ""
    say(out, f"{by} by {kind} ablation, means over {over}{unit}", style="bold")
    rows = table("head", "first", "second", "second\nless first", "95%\ninterval", *([NOISE] if noisy else []))
    for _, row in shown.iterrows():
        rows.add_row(f"L{int(row['layer'])}H{int(row['head'])}", *_cells(row))
    rows.add_section()
    rows.add_row(f"all {len(heads)}", *_cells(overall))
    print_table(out, rows)
    if ablated != [len(heads)] * 2:
        say(
            out,
            f"{len(heads)} heads were ablated in both runs, of {ablated[0]} in the first and {ablated[1]} in the second.",
        )
    chance = f"it would in {0.05 * len(heads):.0f}" if len(heads) >= 20 else "it does in one of twenty"
    say(
        out,
        f"{len(shown)} of {len(heads)} heads, the largest differences first. In {apart} of all the interval leaves out zero; "
        f"by chance {chance}. {_drawn_how(runs, shared)}",
    )
    if noisy:
        say(
            out,
            "A difference smaller than the noise of bfloat16 in both runs is not told from zero, and not counted, whatever its "
            "interval.",
            "dim",
        )
    if selection == "top" and by == CHOSEN_BY:
        say(
            out,
            f"Each run's top tokens were chosen by {by}, and intervals take that choice as it is, which makes them too narrow: "
            "--selection all has none to make.",
            "dim",
        )


def _drawn_how(runs: "tuple[OpenRun, OpenRun]", shared: int) -> str:
    sizes = [len(run.prompts) for run in runs]
    if sizes == [shared, shared]:
        return "Prompts were drawn together, being the same in both runs."
    if not shared:
        return "Prompts were drawn apart, being others in each run."
    return f"Of {sizes[0]} and {sizes[1]} prompts {shared} are in both runs, and were drawn together."


def _show_settings(out: Console, settings: Mapping[str, tuple[Any, Any]]) -> None:
    if not settings:
        out.print("No setting differs.")
        return
    rows = table("setting that differs", "first", "second", left=3)
    for column in rows.columns[1:]:
        column.no_wrap, column.overflow = False, "fold"
    for name, values in settings.items():
        rows.add_row(name, *(visible(str(value)) for value in values))
    out.print(rows)


def differences(
    runs: "tuple[OpenRun, OpenRun]", kind: str, by: str, selection: str, resamples: "tuple[Resamples, Resamples]"
) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """A quantity of the heads that both runs ablated, and its difference.

    Args:
        runs: Two runs of models of one shape.
        kind: Kind of ablation.
        by: The quantity.
        selection: "top" or "all".
        resamples: How often each run's prompts count (`draw_prompts`).

    Returns:
        A row a head: layer, head, first, second, and difference (second less first) with its interval. And the same of the mean
        over these heads, without layer and head.
    """
    import numpy as np
    import pandas as pd

    from selfrepair.tables.statistics import estimated

    of_runs = [_of_heads(each, kind, selection, drawn) for each, drawn in zip(runs, resamples, strict=True)]
    places = [{head: at for at, head in enumerate(heads)} for heads, _ in of_runs]
    common = [head for head in of_runs[0][0] if head in places[1]]
    if not common:
        raise ValueError(f"no head was ablated in both runs ({kind}): compare runs that ablated the same heads")
    means = [
        {name: values[:, [at[head] for head in common]] for name, values in of.items()}
        for (_, of), at in zip(of_runs, places, strict=True)
    ]
    one, two = (of[by] for of in means)
    of_heads = pd.DataFrame({"layer": [layer for layer, _ in common], "head": [head for _, head in common]})
    of_heads = of_heads.assign(first=one[0], second=two[0], **estimated("difference", two - one))
    both = np.isfinite(one[0]) & np.isfinite(two[0])
    one, two = (_over_heads({name: values[:, both] for name, values in of.items()}, by) for of in means)
    overall = {"first": float(one[0]), "second": float(two[0]), **estimated("difference", two - one)}
    return of_heads, overall


def add_noise(heads: "pd.DataFrame", overall: dict[str, Any], tables: "Sequence[pd.DataFrame]", by: str) -> bool:
    """Add what bfloat16 may make of differences (docs/files.md), as difference_noise, where a run has such.

    Args:
        heads: From `differences`, as is ``overall``.
        overall: Likewise.
        tables: Both runs' tables of heads.
        by: The quantity.

    Returns:
        Whether a run has such.
    """
    import numpy as np

    noise = [table.set_index(["layer", "head"])[NOISE_OF + by] for table in tables if NOISE_OF + by in table]
    if noise:
        places = list(zip(heads["layer"], heads["head"], strict=True))
        # At most: that of each run may be of either sign.
        heads["difference_noise"] = np.sum([of_run.loc[places].to_numpy() for of_run in noise], axis=0)
        overall["difference_noise"] = float(heads["difference_noise"][heads["difference"].notna()].mean())
    return bool(noise)


def _is_apart(heads: "pd.DataFrame") -> "pd.Series[bool]":
    """Whether a difference is told from zero."""
    found = (heads["difference_low"] > 0) | (heads["difference_high"] < 0)
    return found & (heads["difference"].abs() >= heads["difference_noise"]) if "difference_noise" in heads else found


def _over_heads(of: "Mapping[str, np.ndarray]", by: str) -> "np.ndarray":
    """A quantity over heads [resample]: the mean, or of the pooled fraction the ratio of the heads' sums."""
    from selfrepair.tables.statistics import mean_over_heads, pooled_fraction

    if by == "pooled_repair_fraction":
        names = ("self_repair", "direct_effect", "ablated_direct_effect")
        return pooled_fraction({name: mean_over_heads(of[name]) for name in names})
    return mean_over_heads(of[by])


def _of_heads(
    run: "OpenRun", kind: str, selection: str, resamples: "Resamples"
) -> "tuple[list[tuple[int, int]], dict[str, np.ndarray]]":
    """The heads of a run, and every quantity of each [resample, head], of which the run's table has the first."""
    import numpy as np

    from selfrepair.measure.thresholds import open_top_tokens
    from selfrepair.tables.statistics import Totals, means, prompt_sums, token_values

    ablations = run.ablations(kind)
    heads = list(zip(ablations["layer"].values.tolist(), ablations["head_index"].values.tolist(), strict=True))
    totals = Totals(resamples)
    with open_top_tokens(run.folder / "thresholds.h5") as top:
        for start in range(0, ablations.sizes["prompt"], PROMPTS_AT_ONCE):
            prompts = slice(start, min(start + PROMPTS_AT_ONCE, ablations.sizes["prompt"]))
            counted = top.of(heads, prompts)
            if selection == "all":
                counted = np.zeros_like(counted)
                counted[..., int(run.settings["first_position"]) :] = True
            totals.add(prompt_sums(token_values(ablations.isel(prompt=prompts)), counted))
    return heads, means(totals)


def _common_kind(runs: "tuple[OpenRun, OpenRun]", kind: str | None) -> str:
    if kind is not None:
        for run in runs:
            if kind not in run.kinds:
                raise ValueError(f"{run.folder} has no {kind!r} ablation: it has {', '.join(run.kinds)}")
        return kind
    if runs[0].main_kind == runs[1].main_kind:
        return runs[0].main_kind
    both = [each for each in runs[0].kinds if each in runs[1].kinds]
    advice = f"compare by --kind {both[0]}, which both have" if both else "they have none in common"
    raise ValueError(
        f"the main kind of ablation is {runs[0].main_kind} in {runs[0].folder} and {runs[1].main_kind} in {runs[1].folder}: "
        f"{advice}"
    )


def _check_selection(runs: "tuple[OpenRun, OpenRun]", kind: str, selection: str) -> None:
    if selection not in SELECTIONS:
        raise ValueError(f"--selection is {selection!r}: wanted one of {', '.join(SELECTIONS)}")
    for name in DEFINING[selection]:
        one, two = (run.settings.get(name) for run in runs)
        if one != two:
            what = "these are other heads" if name.startswith("n_") else "their means are over tokens chosen otherwise"
            raise ValueError(
                f"{runs[0].folder} and {runs[1].folder} cannot be compared: {name} is {one} in the first and {two} in the "
                f"second, so {what}"
            )
    for run in runs:
        run.heads(kind, selection)


def draw_prompts(runs: "tuple[OpenRun, OpenRun]") -> "tuple[tuple[Resamples, Resamples], int]":
    """How often the prompts of two runs count in each resample, and how many prompts are in both.

    A resample of runs that share prompts is one of all prompts of either, so that what a shared one does to both cancels.
    """
    from selfrepair.tables.statistics import Resamples

    first = runs[0].settings
    n_bootstrap, seed = int(first["n_bootstrap"]), int(first["bootstrap_seed"])
    sizes = [len(run.prompts) for run in runs]
    numbers: dict[tuple[bytes, int], int] = {}
    of_runs = []
    for run in runs:
        seen = Counter[bytes]()
        found = []
        for prompt in run.prompts:
            ids = prompt.tobytes()
            # A text that stands in a run twice is two prompts.
            found.append(numbers.setdefault((ids, seen[ids]), len(numbers)))
            seen[ids] += 1
        of_runs.append(found)
    shared = sum(sizes) - len(numbers)
    if not shared:
        # Another draw, or the two would move together.
        one, two = (Resamples.drawn(size, n_bootstrap, seed + place) for place, size in enumerate(sizes))
        return (one, two), 0
    drawn = Resamples.drawn(len(numbers), n_bootstrap, seed)
    one, two = (Resamples.given(drawn.counts[:, places]) for places in of_runs)
    return (one, two), shared


def _differing(runs: "tuple[OpenRun, OpenRun]") -> dict[str, tuple[Any, Any]]:
    """Settings that the two runs do not share, by name: what each has, None where one has none."""
    settings = [{"model": run.model, "corpus": run.corpus, **run.settings} for run in runs]
    names = [*settings[0], *(name for name in settings[1] if name not in settings[0])]
    found = {name: (settings[0].get(name), settings[1].get(name)) for name in names}
    return {name: (one, two) for name, (one, two) in found.items() if one != two}


def _cells(row: "Mapping[str, Any] | pd.Series") -> tuple[Any, ...]:
    ends, noise = (row["difference_low"], row["difference_high"]), row.get("difference_noise")
    difference = signed(row["difference"], *ends, noise=0 if noise is None else noise)
    told = number(row["first"]), number(row["second"]), difference, interval(*ends)
    return told if noise is None else (*told, number(noise))
