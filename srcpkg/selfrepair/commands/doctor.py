"""`selfrepair doctor`: what of this machine and this environment a run needs, and what to do where it is not there."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

import selfrepair
from selfrepair.commands.options import HOME, Json, examples
from selfrepair.commands.output import console, print_json, printable
from selfrepair.files.sealed import refusal
from selfrepair.workflow.config import RESULTS
from selfrepair.workflow.devices import visible_devices
from selfrepair.workflow.graph import some
from selfrepair.workflow.machine import amount, disk_mb, memory_mb

OK, NOTE, BROKEN = "ok", "note", "broken"
"""What a check finds: all is well; what only some runs need, or is worth knowing; what stops any run on this machine."""

LEAST_MEMORY_MB, LEAST_DISK_MB = 1600, 1000
"""What the largest job of the default asks for, and what hardly any run does without."""
SECONDS = 5.0
"""How long the hub and Slurm may take to answer."""
SLURM = ("sbatch", "squeue", "sinfo", "scontrol", "scancel")
"""Programs that profiles/slurm calls."""
NAMED = ("torch", "transformers", "tokenizers", "snakemake", "h5py", "numpy", "pandas", "pyarrow")
"""Packages whose versions a reader of the answer wants to know."""
_COLOURS = {OK: "green", NOTE: "yellow", BROKEN: "bold red"}


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        check: What was looked at.
        status: `OK`, `NOTE` or `BROKEN`.
        found: What is there.
        fix: What to do about it; empty where there is nothing to do.
    """

    check: str
    status: str
    found: str
    fix: str = ""


@examples("selfrepair doctor", "selfrepair doctor --json")
def doctor(as_json: Json = False) -> None:
    """Look at what a run needs: packages, devices, memory, disk, file locks, network, Snakemake and Slurm.

    Each line says what is there, and what to do where something is wrong. The exit status is 1 where something is broken.
    Nothing is left behind; what is asked of the network is one address of the Hugging Face hub.
    """
    findings = [finding for name, check in CHECKS.items() for finding in _found(name, check)]
    broken = [finding.check for finding in findings if finding.status == BROKEN]
    if as_json:
        print_json({"broken": broken, "versions": _versions(), "checks": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
        typer.echo(f"Broken: {', '.join(broken)}." if broken else "Nothing is broken.")
    if broken:
        raise typer.Exit(1)


def _found(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # whatever is wrong with a machine must not hide what else is
        reason = (str(error).strip().splitlines() or [""])[0]
        return [Finding(name, BROKEN, f"could not be looked at: {type(error).__name__}: {reason}", _MEND)]


def _show(findings: list[Finding]) -> None:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for finding in findings:
        text = Text(printable(finding.found))
        if finding.fix:
            text.append(f"\nFix: {printable(finding.fix)}", style="bold")
        rows.add_row(Text(finding.status, style=_COLOURS[finding.status]), finding.check, text)
    console().print(rows)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "selfrepair": selfrepair.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    return {**found, **{name: _version(name) for name in NAMED}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_MEND = f"python -m pip install -r {HOME / 'requirements.lock'}"


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    if " " in sys.executable:
        fix = "Snakemake runs no Python whose path has a blank: move the environment"
        yield Finding("python", BROKEN, found, fix)
    else:
        yield Finding("python", OK, found)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = [Requirement(line) for line in requires("selfrepair") or []]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    missing = [each.name for each in wanted if _version(each.name) is None]
    outside = [
        f"{each.name} {has} (wanted {each.specifier})"
        for each in wanted
        if (has := _version(each.name)) and not each.specifier.contains(has, prereleases=True)
    ]
    told = ", ".join(f"{name} {_version(name)}" for name in NAMED[:5])
    if missing:
        yield Finding("packages", BROKEN, f"missing: {', '.join(missing)}", _MEND)
    if outside:
        yield Finding("packages", BROKEN, f"out of range: {', '.join(outside)}", _MEND)
    if not (missing or outside):
        yield Finding("packages", OK, f"all {len(wanted)} in range: {told}")
    lock = HOME / "requirements.lock"
    if not lock.is_file():
        return
    lines = lock.read_text(encoding="utf-8").splitlines()
    pairs = [line.strip().split("==") for line in lines if line.count("==") == 1 and not line.startswith("#")]
    pins = {canonicalize_name(name): pin for name, pin in pairs}
    names = [name for each in wanted if (name := canonicalize_name(each.name)) in pins]
    # The build of torch for a device is part of its version: 2.9.0+cu128.
    other = [f"{name} {has} (pinned {pins[name]})" for name in names if (has := _base(name)) and has != pins[name]]
    if other:
        yield Finding("pins", NOTE, f"other versions than those that were tested: {some(other)}", _MEND)
    else:
        yield Finding("pins", OK, f"the {len(names)} packages that it imports have the versions that were tested")


def _base(package: str) -> str:
    return (_version(package) or "").partition("+")[0]


def _devices() -> Iterator[Finding]:
    import torch

    there = visible_devices()
    cpu = f"torch {torch.__version__} on the CPU, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            of_device = torch.cuda.get_device_properties(number)
            name = f"cuda:{number} is {of_device.name}, {amount(of_device.total_memory / 1e6)}"
            try:
                float((torch.ones(64, 64, device=f"cuda:{number}") @ torch.ones(64, 64, device=f"cuda:{number}")).sum())
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                fix = "free it (nvidia-smi says who has it), or install the torch build for your driver"
                yield Finding("device", BROKEN, f"{name}, but torch cannot multiply on it: {reason}", fix)
            else:
                yield Finding("device", OK, f"{name}, torch {torch.__version__}: compute.device may be cuda")
    elif there:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found = f"{len(there)} NVIDIA GPUs, but torch {torch.__version__} ({build}) sees none"
        fix = "install the torch build for your driver (https://pytorch.org/get-started/locally)"
        yield Finding("device", BROKEN, found, fix)
    elif torch.backends.mps.is_available():
        yield Finding("device", OK, f"{cpu}; mps is there: compute.device may be mps")
    else:
        yield Finding("device", OK, f"{cpu}; no GPU: compute.device is cpu")


def _memory() -> Iterator[Finding]:
    has = memory_mb()
    fix = "selfrepair plan says which keys of the config need less" if has < LEAST_MEMORY_MB else ""
    found = f"{amount(has)}; a job of the default takes up to {amount(LEAST_MEMORY_MB)}"
    yield Finding("memory", BROKEN if fix else OK, found, fix)


def _disk() -> Iterator[Finding]:
    has = disk_mb(RESULTS)
    fix = "free space, or make results/ a link to a larger disk" if has < LEAST_DISK_MB else ""
    found = f"{amount(has)} are free where {RESULTS}/ is or will be; selfrepair plan says what a run takes"
    yield Finding("disk", BROKEN if fix else OK, found, fix)


def _locks() -> Iterator[Finding]:
    """Whether a file of HDF5 can be written, locked and read where results are."""
    import h5py

    folder = RESULTS if RESULTS.exists() else Path.cwd()
    there = f"HDF5 {h5py.version.hdf5_version} (h5py {h5py.__version__})"
    if h5py.version.hdf5_version_tuple < (1, 10):
        yield Finding("hdf5", BROKEN, f"{there}: files are under checksums of HDF5 1.10", _MEND)
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".selfrepair-doctor-", dir=folder) as made:
            path = Path(made) / "probe.h5"
            with h5py.File(path, "w") as file:
                file["probe"] = 1
            path.replace(path.with_name("whole.h5"))
            with h5py.File(path.with_name("whole.h5"), "r") as file:
                int(file["probe"][()])
    except OSError as error:
        yield Finding("hdf5", BROKEN, there, str(refusal(folder, error, "written")))
    else:
        off = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0")
        locks = "without locks (HDF5_USE_FILE_LOCKING)" if off else "with locks"
        yield Finding("hdf5", OK, f"{there} writes and reads {locks} in {folder.absolute()}")


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    needed = "only hub: sources need it"
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", NOTE, f"not asked, as HF_HUB_OFFLINE is set; {needed}", "unset HF_HUB_OFFLINE to use it")
        return
    address = f"{constants.ENDPOINT}/robots.txt"
    away = "use path: or package: sources, take the snapshot on a machine with network, or set HF_ENDPOINT to a mirror"
    try:
        status = get_session().head(address, timeout=SECONDS).status_code
    except Exception as error:  # of whichever HTTP client the hub's package has
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield Finding("hub", NOTE, f"{constants.ENDPOINT} cannot be reached ({reason}); {needed}", away)
        return
    if status >= 400 and status != 404:
        yield Finding("hub", NOTE, f"{constants.ENDPOINT} answers with status {status}; {needed}", away)
    else:
        yield Finding("hub", OK, f"{constants.ENDPOINT} answers")


def _snakemake() -> Iterator[Finding]:
    has, program = _version("snakemake"), shutil.which("snakemake")
    here = Path(sys.executable).parent
    activate = f". {here / 'activate'}" if (here / "activate").is_file() else f"PATH={here}:$PATH"
    if has is None:
        yield Finding("snakemake", BROKEN, "it is not in this environment", _MEND)
    elif program is None:
        yield Finding("snakemake", NOTE, f"{has}, but no command `snakemake` is on the PATH", activate)
    elif Path(program).parent.resolve() != here.resolve():
        found = f"{has} here, but the command `snakemake` is {program}, of another environment"
        yield Finding("snakemake", NOTE, found, activate)
    else:
        yield Finding("snakemake", OK, f"{has} at {program}")


def _profile() -> Iterator[Finding]:
    import yaml

    path = HOME / "profiles" / "default" / "config.yaml"
    if not (HOME / "Snakefile").is_file():
        found = f"no Snakefile in {HOME}: this package is installed alone"
        yield Finding(
            "workflow", NOTE, found, "run from a clone of the repository; heads, show and ablate work as they are"
        )
        return
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
        triggers = profile["rerun-triggers"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        yield Finding("workflow", BROKEN, f"{path} is no profile ({reason})", f"git checkout {path}")
        return
    others = [name for name in ("SNAKEMAKE_PROFILE", "SNAKEMAKE_CONFIG_FILE") if os.environ.get(name)]
    found = f"{HOME / 'Snakefile'}, profile {path.parent.name} (rerun-triggers: {', '.join(triggers)})"
    fix = f"{' and '.join(others)} in the environment change what Snakemake does: unset, unless it is meant"
    yield Finding("workflow", NOTE if others else OK, found, fix if others else "")


def _slurm() -> Iterator[Finding]:
    there = [name for name in SLURM if shutil.which(name)]
    plugin = _version("snakemake-executor-plugin-slurm")
    if not there:
        yield Finding("slurm", NOTE, "no Slurm here; only profiles/slurm needs one")
        return
    if plugin is None:
        yield Finding("slurm", NOTE, "Slurm is here, snakemake-executor-plugin-slurm is not", _MEND)
        return
    if missing := [name for name in SLURM if name not in there]:
        fix = "load your cluster's Slurm module, or run from a login node"
        yield Finding("slurm", NOTE, f"of what profiles/slurm calls {', '.join(missing)} are not here", fix)
        return
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=SECONDS, check=False)
        said = done.stderr.strip() or done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        done, said = None, str(error)
    if done is None or done.returncode:
        reason = (said.splitlines() or ["no reason given"])[0]
        fix = "run from a login node, or ask the cluster's administrator"
        yield Finding("slurm", NOTE, f"profiles/slurm will not do here: Slurm does not answer ({reason})", fix)
    elif os.environ.get("SLURM_JOB_ID"):
        fix = "start Snakemake on a login node: it submits jobs itself"
        yield Finding("slurm", NOTE, f"this is Slurm job {os.environ['SLURM_JOB_ID']}", fix)
    else:
        yield Finding("slurm", OK, f"Slurm answers; plugin {plugin}")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": _python,
    "packages": _packages,
    "snakemake": _snakemake,
    "workflow": _profile,
    "device": _devices,
    "memory": _memory,
    "disk": _disk,
    "hdf5": _locks,
    "hub": _hub,
    "slurm": _slurm,
}
"""What is looked at, in the order in which it is said."""
