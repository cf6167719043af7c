"""`selfrepair why`, `verify` and `take-notes`: what is stale, whether results are what they say, and Snakemake's notes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from selfrepair.commands.options import HOME, Json, Overlays, Targets, Workflow, examples
from selfrepair.commands.output import print_json
from selfrepair.workflow import graph
from selfrepair.workflow.config import read_config_file
from selfrepair.workflow.graph import Job, differences, read_jobs, some

Told = Mapping[tuple[str, str], list[Job]]
"""Jobs by their rule and what is said of them."""


@examples(
    "selfrepair why",
    "selfrepair why self_repair_by_layer",
    "selfrepair why --configfile config/mine.yaml --json",
)
def why(targets: Targets = None, configfile: Overlays = None, as_json: Json = False, workflow: Workflow = None) -> None:
    """Say which rules `snakemake` would run for some targets, and why: a line a rule. Runs nothing."""
    told = dict[tuple[str, str], list[Job]]()
    jobs = _jobs(targets, configfile, workflow)
    for job in jobs:
        if job.stale:
            reasons = [*job.because, *(differences(job) if job.made and not job.forgotten else [])]
            if job.follows:
                reasons.append(f"follows {some(job.follows)}")
            told.setdefault((job.rule, "; ".join(reasons)), []).append(job)
    stale, forgotten = sum(job.stale for job in jobs), sum(job.made and job.forgotten for job in jobs)
    if as_json:
        print_json({"jobs": len(jobs), "would_run": stale, "without_notes": forgotten, "why": _listed(told)})
        return
    for line in _lines(told):
        typer.echo(line)
    typer.echo(f"{stale} of {len(jobs)} jobs would run." if stale else f"Nothing: all {len(jobs)} jobs are done.")
    if forgotten:
        typer.echo("Snakemake has no notes of some of these results: `selfrepair take-notes` looks at them.")


@examples("selfrepair verify", "selfrepair verify self_repair_by_layer --json")
def verify(
    targets: Targets = None, configfile: Overlays = None, as_json: Json = False, workflow: Workflow = None
) -> None:
    """Compare every result with what its own provenance says: its files, what it was made of, code and config.

    Reads all that is there, and relies on none of Snakemake's notes. The exit status is 1 where something differs.
    """
    wrong = dict[tuple[str, str], list[Job]]()
    jobs = [job for job in _jobs(targets, configfile, workflow) if job.made]
    for job in jobs:
        for difference in differences(job, sure=True):
            wrong.setdefault((job.rule, difference), []).append(job)
    differing = {job.outputs[0] for group in wrong.values() for job in group}
    rules = sorted({rule for rule, _ in wrong})
    if as_json:
        print_json({"results": len(jobs), "differing": len(differing), "rules": rules, "why": _listed(wrong)})
    else:
        for line in _lines(wrong):
            typer.echo(line)
        typer.echo(f"{len(jobs) - len(differing)} of {len(jobs)} results are what their provenance says.")
        if differing:
            typer.echo(f"Remake the others: snakemake --forcerun {' '.join(rules)}")
    if differing:
        raise typer.Exit(1)


@examples("selfrepair take-notes", "selfrepair take-notes --json")
def take_notes(configfile: Overlays = None, as_json: Json = False, workflow: Workflow = None) -> None:
    """Give Snakemake the notes that it lacks of results that are there. A run does so by itself where the one before it died.

    Of what a result's own provenance vouches for Snakemake then knows how it was made; all else it will make again. No result
    is changed.
    """
    made, again = graph.take_notes((workflow or HOME) / "Snakefile", configfile or [])
    if as_json:
        print_json({"as_they_say": len(made), "will_be_made_again": len(again)})
    elif made or again:
        typer.echo(
            f"Snakemake lacked notes of {len(made) + len(again)} results: {len(made)} are what they say, {len(again)} will be "
            "made again."
        )


def _jobs(targets: list[str] | None, configfile: list[Path] | None, workflow: Path | None) -> list[Job]:
    for path in configfile or []:
        read_config_file(path)
    return read_jobs((workflow or HOME) / "Snakefile", configfile or [], targets or [])


def _lines(told: Told) -> Iterator[str]:
    """A line for each rule and what is said of some of its jobs."""
    for (rule, reason), jobs in told.items():
        yield f"{rule}{f' ({len(jobs)} jobs)' if len(jobs) > 1 else ''}: {reason}"


def _listed(told: Told) -> list[dict[str, Any]]:
    """The same for JSON, with the files that each job makes."""
    return [
        {"rule": rule, "reason": reason, "jobs": [[str(path) for path in job.outputs] for job in jobs]}
        for (rule, reason), jobs in told.items()
    ]
