"""The command `selfrepair`: what a run takes, why it would run again, and whether results are what they say they are."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from selfrepair.workflow.config import (
    RESULTS,
    check_config,
    check_models,
    leave_out,
    read_config_file,
)
from selfrepair.workflow.graph import Job, differences, read_jobs, some, take_notes
from selfrepair.workflow.machine import amount, disk_mb, memory_mb
from selfrepair.workflow.plan import SHARE, Plan, RunPlan, make_plan
from selfrepair.workflow.resources import products, stated_rate

MANIFEST = (RESULTS / "snapshots" / "models" / "{name}" / "manifest.json").as_posix()
MATRIX, SECONDS = 2048, 1.0
"""Size of the matrices, and how long they are multiplied, to measure a rate."""

HOME = Path(__file__).resolve().parents[3]
Overlays = Annotated[
    list[Path] | None, typer.Option(help="Overlay of the default config, as for snakemake; may be given again.")
]
Home = Annotated[Path | None, typer.Option(help="Folder of the Snakefile; that of this package where it is left out.")]
Targets = Annotated[
    list[str] | None, typer.Argument(help="Figures, rules or files; all of the run where they are left out.")
]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def selfrepair() -> None:
    """Self-repair in language models. Runs are made by `snakemake`; this says what they take, and what has become of them."""


@app.command()
def plan(
    configfile: Overlays = None,
    tflops: Annotated[
        float | None, typer.Option(help="Rate of large matrix products, TFLOP/s; measured here where it is left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    workflow: Home = None,
) -> None:
    """Say what a run takes, and what will not fit. Runs nothing. The exit status is 1 where something will not fit."""
    home = workflow or HOME
    try:
        config = read_configs(home / "config" / "config.yaml", configfile or [])
        check_config(config, home / "config" / "config.schema.yaml")
        check_models(config, MANIFEST)
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    rate, rate_is = (tflops, "given") if tflops else _rate(config["compute"])
    found = make_plan(
        config,
        MANIFEST,
        tflops=rate,
        rate_is=rate_is,
        memory_mb=memory_mb(),
        disk_mb=disk_mb(RESULTS),
    )
    if as_json:
        typer.echo(found.as_json())
    else:
        _show(found, Console())
    if found.does_not_fit:
        raise typer.Exit(1)


@app.command()
def why(targets: Targets = None, configfile: Overlays = None, workflow: Home = None) -> None:
    """Say which rules `snakemake` would run for some targets, and why: a line a rule. Runs nothing."""
    lines = dict[tuple[str, str], list[Job]]()
    jobs = _jobs(targets, configfile, workflow)
    for job in jobs:
        if job.stale:
            reasons = [*job.because, *(differences(job) if job.made and not job.forgotten else [])]
            if job.follows:
                reasons.append(f"follows {some(job.follows)}")
            lines.setdefault((job.rule, "; ".join(reasons)), []).append(job)
    made = [job for job in jobs if job.made]
    for line in _told(lines):
        typer.echo(line)
    stale = sum(job.stale for job in jobs)
    typer.echo(f"{stale} of {len(jobs)} jobs would run." if stale else f"Nothing: all {len(jobs)} jobs are done.")
    if made and any(job.forgotten for job in made):
        typer.echo("Snakemake has no notes of some of these results: `selfrepair take-notes` looks at them.")


@app.command()
def verify(targets: Targets = None, configfile: Overlays = None, workflow: Home = None) -> None:
    """Compare every result with what its own provenance says: its files, what it was made of, code and config.

    Reads all that is there, and relies on none of Snakemake's notes. The exit status is 1 where something differs.
    """
    wrong = dict[tuple[str, str], list[Job]]()
    jobs = [job for job in _jobs(targets, configfile, workflow) if job.made]
    for job in jobs:
        for difference in differences(job, sure=True):
            wrong.setdefault((job.rule, difference), []).append(job)
    for line in _told(wrong):
        typer.echo(line)
    differing = {job.outputs[0] for group in wrong.values() for job in group}
    typer.echo(f"{len(jobs) - len(differing)} of {len(jobs)} results are what their provenance says.")
    if differing:
        typer.echo(f"Remake the others: snakemake --forcerun {' '.join(sorted({rule for rule, _ in wrong}))}")
        raise typer.Exit(1)


@app.command(name="take-notes")
def take_notes_of_results(configfile: Overlays = None, workflow: Home = None) -> None:
    """Give Snakemake the notes that it lacks of results that are there. A run does so by itself where the one before it died.

    Of what a result's own provenance vouches for Snakemake then knows how it was made; all else it will make again. No result
    is changed.
    """
    try:
        made, again = take_notes((workflow or HOME) / "Snakefile", configfile or [])
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    if made or again:
        typer.echo(
            f"Snakemake lacked notes of {len(made) + len(again)} results: {len(made)} are what they say, {len(again)} will be "
            "made again."
        )


def _jobs(targets: list[str] | None, configfile: list[Path] | None, workflow: Path | None) -> list[Job]:
    try:
        for path in configfile or []:
            read_config_file(path)
        return read_jobs((workflow or HOME) / "Snakefile", configfile or [], targets or [])
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


def _told(lines: Mapping[tuple[str, str], list[Job]]) -> Iterator[str]:
    """A line for each rule and what is said of some of its jobs."""
    for (rule, reason), jobs in lines.items():
        yield f"{rule}{f' ({len(jobs)} jobs)' if len(jobs) > 1 else ''}: {reason}"


def read_configs(default: Path, overlays: list[Path]) -> dict[Any, Any]:
    """The default config with overlays laid over it, as Snakemake does it: keys by keys, lists as a whole.

    Raises:
        ValueError: A file that cannot be read, or is no YAML of keys.
    """
    config: dict[Any, Any] = {}
    for path in (default, *overlays):
        _lay_over(config, read_config_file(path))
    leave_out(config)
    return config


def _lay_over(config: dict[Any, Any], overlay: dict[Any, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _lay_over(config[key], value)
        else:
            config[key] = value


def _rate(compute: dict[str, Any]) -> tuple[int | float, str]:
    """Rate of matrix products of the config's device, TFLOP/s: measured where the device is here, else as it is stated."""
    import torch

    on_gpu = compute["device"].startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        return stated_rate(compute), "stated"
    names = {"float64": torch.float64, "bfloat16": torch.bfloat16 if on_gpu else torch.float32}
    a = torch.ones(MATRIX, MATRIX, dtype=names.get(products(compute), torch.float32), device=compute["device"])
    b, count = a @ a, 0
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        b, count = a @ a, count + 1
        if on_gpu:
            torch.cuda.synchronize()
    del b
    return 2 * count * MATRIX**3 / (time.perf_counter() - started) / 1e12, "measured"


def _show(found: Plan, console: Console) -> None:
    console.print(
        f"Hours at {SHARE:.0%} of {found.tflops:.3g} TFLOP/s ({found.rate_is}), one job after the other. "
        f"This machine: {amount(found.memory_mb)} of memory, {amount(found.disk_mb)} of free disk. Memory is a job's.",
        soft_wrap=True,
    )
    for run in found.runs:
        console.print()
        console.print(_table(run) if run.stages else f"[bold]{run.model} on {run.corpus}[/bold]: {run.unknown}")
        if run.better_shards:
            console.print(
                f"A job of a shard takes up to {_hours(run.longest_hours)} hours, and its time limit is several times that: "
                f"set tokens.prompts_per_shard to about {run.better_shards} for half an hour.",
                soft_wrap=True,
            )
    console.print()
    for line in found.does_not_fit:
        console.print(f"[bold red]Does not fit:[/bold red] {line}", soft_wrap=True)
    if not found.does_not_fit and any(run.stages for run in found.runs):
        console.print("All of it fits." if all(run.stages for run in found.runs) else "What is known of it fits.")


def _table(run: RunPlan) -> Table:
    gpu = max(stage.gpu_mb for stage in run.stages)
    table = Table(title=f"{run.model} on {run.corpus}", title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("jobs", "tokens", "operations", "hours", "memory", *(["GPU"] if gpu else []), "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in run.stages:
        table.add_row(
            stage.name,
            f"{stage.jobs:,}",
            f"{stage.tokens:,}" if stage.tokens else "",
            f"{stage.operations:.2g}" if stage.operations else "",
            _hours(stage.hours) if stage.operations else "",
            amount(stage.mem_mb),
            *([amount(stage.gpu_mb) if stage.gpu_mb else ""] if gpu else []),
            amount(stage.disk_mb),
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(stage.jobs for stage in run.stages):,}",
        "",
        f"{sum(stage.operations for stage in run.stages):.2g}",
        _hours(sum(stage.hours for stage in run.stages)),
        amount(max(stage.mem_mb for stage in run.stages)),
        *([amount(gpu)] if gpu else []),
        amount(run.kept_mb),
    )
    return table


def _hours(hours: int | float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1g}" if hours < 0.1 else f"{hours:.2g}"
