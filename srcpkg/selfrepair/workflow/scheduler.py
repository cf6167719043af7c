"""What is known of a scheduler, and of where results would lie, before anything is submitted."""

import shutil
import subprocess
from pathlib import Path

SHOWN = 5


def check_arrays(rules: str | None, ready: int, jobs: int | None, per_second: int | None) -> None:
    """Refuse job arrays where they would never be submitted.

    Snakemake's plugin (2.8) waits until all jobs of a rule that are ready have been handed to it, or an array is full, and
    forgets those that it was handed before. Any limit below their number makes it wait for ever.

    Args:
        rules: The plugin's ``slurm-array-jobs``.
        ready: Jobs of a rule that may be ready at a time.
        jobs: Snakemake's limit of jobs at a time.
        per_second: Its limit of jobs handed over in a second.

    Raises:
        ValueError: With what to set.
    """
    if not rules:
        return
    limits = {"jobs": jobs, "max-jobs-per-timespan": per_second}
    if too_low := [f"{name} is {limit}" for name, limit in limits.items() if limit is not None and limit < ready]:
        raise ValueError(
            f"with slurm-array-jobs, {' and '.join(too_low)}, but {ready} jobs of a rule may be ready at once, and the plugin "
            f"would wait for ever: set jobs: {ready} and max-jobs-per-timespan: {ready}/1s, or leave slurm-array-jobs out"
        )


def check_storage(provider: str | None, shared: bool) -> None:
    """Refuse results that jobs would fetch one by one: in object storage, or copied between machines.

    Snakemake carries the files that rules name. A snapshot's weights, tokenizer and texts lie beside the manifest that is
    named, and what the workflow reads when it starts, and what an ablation goes on from, lie below results/.

    Args:
        provider: Snakemake's ``default-storage-provider``.
        shared: Whether jobs see the results of others on a filesystem (``shared-fs-usage``).

    Raises:
        ValueError: With what is needed.
    """
    if provider is not None or not shared:
        place = f"results would lie in storage ({provider})" if provider else "jobs would not see each other's results"
        raise ValueError(
            f"{place}, but this workflow needs one filesystem that all its jobs see: leave default-storage-provider and "
            "shared-fs-usage out, and take an executor for a shared filesystem (docs/cluster.md, Elsewhere)"
        )


def check_gpus() -> None:
    """Refuse a run on GPUs where the cluster says it has none.

    Raises:
        ValueError: With what to do.
    """
    if "gpu" not in _answer("sinfo", "--noheader", "--format", "%G"):
        raise ValueError(
            "compute.device is cuda, but no node of this cluster names a GPU (`sinfo -o '%N %G'`; GresTypes and Gres in "
            "slurm.conf, gres.conf): ask its administrator, or set compute.device to cpu"
        )


def check_queue() -> None:
    """Refuse to start while jobs of an earlier run of this folder are in the queue: each would run twice.

    Raises:
        ValueError: With the jobs, and how to cancel them.
    """
    listed = _answer("squeue", "--me", "--noheader", "--format", "%A %Z").splitlines()
    found = sorted(
        {int(job) for job, folder in (line.split(" ", 1) for line in listed) if Path(folder.strip()) == Path.cwd()}
    )
    if found:
        ids = " ".join(map(str, found[:SHOWN])) + (" ..." if len(found) > SHOWN else "")
        raise ValueError(
            f"{len(found)} jobs of an earlier run of this folder are still in the queue ({ids}): let them end (`squeue --me`), "
            "or cancel them (`scancel`), then run again; what they finish is kept"
        )


def _answer(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not here: start Snakemake on a node that may submit jobs")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{command[0]} does not answer ({done.stderr.strip() or done.returncode}): is Slurm up?")
    return done.stdout
