"""What every workflow script runs in: its log, its threads, its errors."""

import io
import logging
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from selfrepair.files.sealed import full_disk, refusal
from selfrepair.workflow import failures
from selfrepair.workflow.devices import device_of_its_own
from selfrepair.workflow.logs import gather
from selfrepair.workflow.machine import disk_mb, memory_mb, out_of_memory, shortage
from selfrepair.workflow.provenance import describe
from selfrepair.workflow.records import record_path, write_record
from selfrepair.workflow.second_names import second_name

logger = logging.getLogger(__name__)

NOT_CONFIG = ("script", "code", "named", "edited")
"""Params of every rule (rules/common.smk) that are no values of the config."""

SMALL_POOL = "ARROW_DEFAULT_MEMORY_POOL", "system"
"""Setting of Arrow's, read when it is first imported: the pool that it would take keeps tens of MB for a table of one."""

STOPPED = (
    f"{failures.STOPPED} (SIGTERM): the scheduler's time limit is up, or the job was cancelled. Run again; where time was "
    "short, give the rule more (snakemake --set-resources RULE:runtime=MINUTES)"
)


@contextmanager
def job(snakemake: Any, offline: bool = True) -> Iterator[dict[str, Any]]:
    """Run a block as a rule's job: output, log lines and tracebacks, import errors included, go to the rule's log.

    Args:
        snakemake: The script's snakemake object; its params hold ``script``, ``code`` and the config values that the job uses.
        offline: Forbid the Hugging Face libraries to ask the hub.

    Yields:
        Provenance of the job's results (`selfrepair.workflow.provenance.describe`).

    Raises:
        SystemExit: The block failed, and the log holds the traceback; or it was interrupted.
    """
    _limit_threads(snakemake.threads)
    os.environ.setdefault(*SMALL_POOL)
    signal.signal(signal.SIGTERM, _terminate)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    log, started = Path(snakemake.log[0]), time.monotonic()
    with _redirected(log) as terminal:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
        outputs = [Path(path) for path in snakemake.output]
        try:
            _refuse_what_does_not_fit(snakemake)
            record_path(outputs[0]).unlink(missing_ok=True)
            config = {key: value for key, value in snakemake.params.items() if key not in NOT_CONFIG}
            provenance = describe(
                code=snakemake.params.code, config=config, inputs=[Path(path) for path in snakemake.input]
            )
            with device_of_its_own() if _wants_a_device(snakemake) else nullcontext():
                yield provenance
            write_record(outputs, snakemake.rule, provenance, snakemake.params.get("edited", ""))
            seconds, asked = time.monotonic() - started, snakemake.resources.get("mem_mb", "no")
            took = "peak memory: %.0f MB of %s MB asked for; %.1f s on %s"
            logger.info(took, peak_mb(), asked, seconds, socket.gethostname())
        except Exception as error:
            _tell(error, outputs, terminal)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            # Ctrl-C reaches every process of the run; Snakemake says what was stopped.
            print("\nInterrupted.", file=sys.stderr)  # noqa: T201
            raise SystemExit(130) from None
        except _Terminated:
            print(f"\nError: {STOPPED}", file=sys.stderr)  # noqa: T201
            raise SystemExit(143) from None
    if "shard" in dict(snakemake.wildcards.items()):
        gather(log)


class _Terminated(BaseException):
    """The scheduler wants the job to end: what is half written goes, as after any error."""


def _terminate(_number: int, _frame: Any) -> None:
    # A scheduler and Snakemake may both send one: the second must not stop what is written at the end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _tell(error: Exception, outputs: list[Path], terminal: Any) -> None:
    """Write an error to the log; or to the terminal, where the disk is so full that there is no log."""
    if not isinstance(error, ValueError) and (full := full_disk(error)):
        error = refusal(Path(full.filename or outputs[0]), full, "written").with_traceback(error.__traceback__)
    # Of whatever says so: what a library raises then is often taken for a fault of a file or of the config.
    elif short := out_of_memory(error):
        cause, error = error, ValueError(short)
        error.__cause__ = cause
    # A ValueError is addressed to the user: it stands last, where a log is read first.
    last = f"\nError: {error}" if isinstance(error, ValueError) else f"\n{error!r}"
    try:
        traceback.print_exception(error)
        print(last, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        print(last, file=terminal, flush=True)


def _wants_a_device(snakemake: Any) -> bool:
    """Whether the job runs on a GPU, and the config leaves open on which."""
    device = snakemake.params.get("compute", {}).get("device")
    return device == "cuda" and bool(snakemake.resources.get("gpu"))


def _refuse_what_does_not_fit(snakemake: Any) -> None:
    """Stop before the work where the job's memory or disk is more than there is: sizes of a model may be known here first.

    Raises:
        ValueError: With how much is needed and how much is there.
    """
    asked = {kind: snakemake.resources.get(f"{key}_mb") for kind, key in (("memory", "mem"), ("disk", "disk"))}
    out = Path(snakemake.output[0])
    has = {"memory": memory_mb(), "disk": disk_mb(out.parent)}
    if isinstance(asked["disk"], int | float) and asked["disk"] > has["disk"]:
        from selfrepair.files.kept import kept_beside  # late: it imports NumPy

        # What an earlier attempt has left is part of what is asked for.
        left = [*kept_beside(out).glob("*"), *out.parent.glob(second_name(out).name)]
        has["disk"] += sum(path.stat().st_size for path in left) // 10**6
    for kind, mb in asked.items():
        # Snakemake hands out no more than the machine's memory: a job that wants more has been given all of it.
        if isinstance(mb, int | float) and (mb >= has[kind] if kind == "memory" else mb > has[kind]):
            raise ValueError(shortage(f"this job ({snakemake.rule})", kind, mb, has[kind]))


def peak_mb() -> float:
    """The most memory that this process has held at a time, in MB of 10^6 bytes."""
    try:
        # Not getrusage, whose peak on Linux is the parent's where that held more when it started this process.
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _limit_threads(threads: int) -> None:
    """Give the numerical libraries the rule's threads; they read this when they are first imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")


@contextmanager
def _redirected(log: Path) -> Iterator[Any]:
    """Send stdout and stderr, of libraries in C too, to ``log``; yields the former stderr."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with log.open("w", encoding="utf-8") as file, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # so that the log keeps the order of what was said
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, former in zip((1, 2), kept, strict=True):
                os.dup2(former, number)
                os.close(former)
