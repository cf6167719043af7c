"""`selfrepair plan`: what a run takes, and what of it does not fit."""

import math
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfrepair.commands.options import HOME, Json, Overlays, Workflow, examples
from selfrepair.commands.output import console, table
from selfrepair.workflow.config import RESULTS, check_config, check_models, read_configs
from selfrepair.workflow.machine import amount, disk_mb, memory_mb
from selfrepair.workflow.plan import SHARE, Plan, RunPlan, make_plan
from selfrepair.workflow.resources import products, stated_rate

MANIFEST = (RESULTS / "snapshots" / "models" / "{name}" / "manifest.json").as_posix()
MATRIX, SECONDS = 2048, 1.0
"""Size of the matrices, and how long they are multiplied, to measure a rate."""


@examples(
    "selfrepair plan",
    "selfrepair plan --configfile config/mine.yaml --tflops 0.1",
    "selfrepair plan --configfile config/mine.yaml --tflops 0.1 --json",
)
def plan(
    configfile: Overlays = None,
    tflops: Annotated[
        float | None, typer.Option(help="Rate of large matrix products, TFLOP/s; measured here where it is left out.")
    ] = None,
    as_json: Json = False,
    workflow: Workflow = None,
) -> None:
    """Say what a run takes, and what will not fit. Runs nothing. The exit status is 1 where something will not fit."""
    if tflops is not None and not 0 < tflops < math.inf:
        raise ValueError(f"--tflops is {tflops}: wanted a rate above 0, such as 0.1 for two cores or 20 for a GPU")
    home = workflow or HOME
    config = read_configs(home / "config" / "config.yaml", configfile or [])
    check_config(config, home / "config" / "config.schema.yaml")
    check_models(config, MANIFEST)
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
        _show(found, console())
    if found.does_not_fit:
        raise typer.Exit(1)


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


def _show(found: Plan, out: Console) -> None:
    out.print(
        f"Hours at {SHARE:.0%} of {found.tflops:.3g} TFLOP/s ({found.rate_is}), one job after the other. "
        f"This machine: {amount(found.memory_mb)} of memory, {amount(found.disk_mb)} of free disk. Memory is a job's.",
        soft_wrap=True,
    )
    for run in found.runs:
        name = f"{run.model} on {run.corpus}"
        out.print()
        out.print(_table(run, name) if run.stages else Text.assemble((name, "bold"), f": {run.unknown}"))
        if run.better_shards:
            out.print(
                f"A job of a shard takes up to {_hours(run.longest_hours)} hours, and its time limit is several times that: "
                f"set tokens.prompts_per_shard to about {run.better_shards} for half an hour.",
                soft_wrap=True,
            )
    out.print()
    for line in found.does_not_fit:
        out.print(Text.assemble(("Does not fit: ", "bold red"), line), soft_wrap=True)
    if not found.does_not_fit and any(run.stages for run in found.runs):
        out.print("All of it fits." if all(run.stages for run in found.runs) else "What is known of it fits.")


def _table(run: RunPlan, title: str) -> Table:
    gpu = max(stage.gpu_mb for stage in run.stages)
    columns = ("stage", "jobs", "tokens", "operations", "hours", "memory", *(["GPU"] if gpu else []), "disk")
    rows = table(*columns, title=title)
    for stage in run.stages:
        rows.add_row(
            stage.name,
            f"{stage.jobs:,}",
            f"{stage.tokens:,}" if stage.tokens else "",
            f"{stage.operations:.2g}" if stage.operations else "",
            _hours(stage.hours) if stage.operations else "",
            amount(stage.mem_mb),
            *([amount(stage.gpu_mb) if stage.gpu_mb else ""] if gpu else []),
            amount(stage.disk_mb),
        )
    rows.add_section()
    rows.add_row(
        "all",
        f"{sum(stage.jobs for stage in run.stages):,}",
        "",
        f"{sum(stage.operations for stage in run.stages):.2g}",
        _hours(sum(stage.hours for stage in run.stages)),
        amount(max(stage.mem_mb for stage in run.stages)),
        *([amount(gpu)] if gpu else []),
        amount(run.kept_mb),
    )
    return rows


def _hours(hours: int | float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1g}" if hours < 0.1 else f"{hours:.2g}"
