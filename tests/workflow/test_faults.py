"""What befalls runs: kills, full disks, damage, a second run, a scheduler's limits. Each ends as the run that nothing befell.

`make test-faults`; these take minutes, so `make test` leaves them out.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from selfrepair.files.hdf5 import open_hdf5
from selfrepair.files.sealed import read_json
from selfrepair.files.tables import read_table
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.workflow.second_names import second_name
from workflow.conftest import save_model
from workflow.running import TIMEOUT, Space
from workflow.same import differences, results
from workflow.stale import EVERY

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("error")]

KILLS, SEED = 20, 7
TARGET = "results/tiny/words/tables/resample/heads.parquet"
SHARES = (0.0, 0.1, 0.35, 0.6, 0.9, 0.999)
FLIPS = 50


@pytest.fixture
def started(fresh: Space, tmp_path: Path) -> Space:
    """A model, text and config, with nothing made of them yet."""
    return fresh.copy(tmp_path / "space")


def start(space: Space, *arguments: str) -> subprocess.Popen[str]:
    """Snakemake with all its jobs in a group of processes of its own."""
    with (space.root / "printed.txt").open("a") as stream:
        return subprocess.Popen(
            space.command(*arguments),
            cwd=space.work,
            env=space.environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            # What was started in the background ignores Ctrl-C, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a whole group, and wait until none of it lives."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(timeout=TIMEOUT)
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def count(space: Space) -> int:
    """Results that are there now; folders come and go while a snapshot is taken."""
    while True:
        with suppress(FileNotFoundError):
            return len(results(space.work / "results"))


def assert_undisturbed(space: Space, finished: Space) -> None:
    assert list(differences(space.work / "results", finished.work / "results")) == []
    assert list(space.work.rglob("*.partial")) == []
    assert space.jobs() == {}


def assert_same(space: Space, finished: Space) -> None:
    """Of a run of a part: all that is there."""
    made = results(space.work / "results")
    assert made
    alone = {f"{name} is in one alone" for name in results(finished.work / "results").keys() - made.keys()}
    assert set(differences(space.work / "results", finished.work / "results")) == alone
    assert list(space.work.rglob("*.partial")) == []


def test_a_run_that_is_killed_again_and_again(started: Space, finished: Space) -> None:
    """As by the kernel for memory, or by power cuts: over all stages, each time at a seeded moment."""
    moments = random.Random(SEED)
    everything = len(results(finished.work / "results"))
    for kill in range(KILLS):
        process = start(started)
        deadline = time.monotonic() + TIMEOUT
        while count(started) < everything * kill / KILLS:
            assert process.poll() is None, (started.root / "printed.txt").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Snakemake reads the workflow, or jobs start, compute or write.
        time.sleep(moments.uniform(0, 6))
        end(process, signal.SIGKILL)
        started.make("--unlock")
    started.make()
    assert_undisturbed(started, finished)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small filesystem can only be made by who may mount one: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(started: Space, finished: Space, small_disk: Path) -> None:
    (started.work / "results").symlink_to(small_disk)
    # What a job asks for is looked at before its work, and refused there.
    refused = started.snakemake(TARGET)
    assert re.search(r"Error: this job \(\w+\) needs \d+ MB of disk, 0 MB are free here: ", refused.stdout)
    little = ("--set-resources", *(f"{rule}:disk_mb=0" for rule in sorted(EVERY)))
    failed = started.snakemake(TARGET, "--keep-going", *little)
    assert failed.returncode != 0
    assert "Segmentation" not in failed.stdout
    logs = [path.read_text(encoding="utf-8") for path in (started.work / "logs").rglob("*.log")]
    last = [log.strip().splitlines()[-1] for log in logs if "Traceback" in log]
    assert last
    for line in last:
        assert line.startswith("Error: results/"), line
        assert "cannot be written (No space left on device" in line, line
    assert any(
        "are free there): the disk or the quota is full: free space, set cache.keep to false" in line for line in last
    )
    left = [path for path in small_disk.rglob("*") if path.is_file()]
    assert [path.name for path in left if path.name.endswith(".partial")] == []
    # No CSV without its table.
    assert [path.name for path in left if path.suffix == ".csv" and not path.with_suffix(".parquet").exists()] == []
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    started.make(TARGET, *little)
    assert_same(started, finished)


def test_two_runs_at_once(started: Space, finished: Space) -> None:
    target = "results/tiny/words/prompts.json"
    first = start(started, target)
    deadline = time.monotonic() + TIMEOUT
    while not list((started.work / ".snakemake" / "locks").glob("*")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = started.snakemake(target)
    assert second.returncode != 0
    assert "locked" in second.stdout
    assert first.wait(timeout=TIMEOUT) == 0
    assert_same(started, finished)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "the scheduler's time limit is up, or the job was cancelled")],
    ids=["killed for memory", "time limit"],
)
def test_a_job_that_is_ended(copied: Space, finished: Space, number: signal.Signals, words: str) -> None:
    """One job, not the run: Snakemake says which, removes what it had made, and the same command goes on."""
    target = "results/tiny/words/ablations/resample/00000.h5"
    process = start(copied, target, "--forcerun", target)
    deadline = time.monotonic() + TIMEOUT
    job = None
    while job is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
        job = next(iter(children(process.pid, "ablate_heads")), None)
    time.sleep(2)
    os.kill(job, number)
    assert process.wait(timeout=TIMEOUT) != 0
    printed = (copied.root / "printed.txt").read_text()
    assert words in printed
    assert "ablate_heads" in printed
    assert not (copied.work / target).exists()
    assert list(copied.work.rglob("*.partial")) == []
    copied.make(target)
    assert_same(copied, finished)


SLOW = ("keeper.finished(layer, rows, filled)", "; print('swept', layer, flush=True); __import__('time').sleep(0.5)")
"""A sweep that says where it is, and takes its time there."""


def test_an_ablation_that_is_ended_in_the_middle_of_its_shard(started: Space) -> None:
    """By SIGTERM it keeps what it has finished; killed, what it had written by then. The next attempt goes on there."""
    layers, reached = 6, 3
    save_model(started.work / "model", num_hidden_layers=layers)
    sweep, kept = started.package / "engine" / "sweep.py", started.package / "files" / "kept.py"
    sweep.write_text(sweep.read_text().replace(SLOW[0], "".join(SLOW), 1))
    out = started.work / "results/tiny/words/ablations/resample/00000.h5"
    target = str(out.relative_to(started.work))
    log = started.work / "logs/tiny/words/ablate_heads/resample/00000.log"
    started.make(target)
    wanted, finished_logs = values_of(out), log.with_name("finished.log")
    assert finished_logs.read_text().count("swept") == layers
    for number in (signal.SIGTERM, signal.SIGKILL):
        if number == signal.SIGKILL:  # as after five minutes
            kept.write_text(kept.read_text().replace("EVERY = 300.0", "EVERY = 0.0", 1))
        process = start(started, target, "--forcerun", target)
        deadline = time.monotonic() + TIMEOUT
        while text_of_log(log).count("swept") < reached:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        [job] = children(process.pid, "ablate_heads")
        os.kill(job, number)
        assert process.wait(timeout=TIMEOUT) != 0
        assert not out.exists()
        said = text_of_log(log)
        done = said.count("swept")
        assert reached <= done < layers
        assert (f"kept: {done} finished layers up to layer {done - 1} of prompts 0 to 3" in said) == (
            number == signal.SIGTERM
        )
        assert [path.name for path in out.parent.iterdir()] == [".00000.kept"]
        finished_logs.unlink()
        started.make(target)
        said = finished_logs.read_text()
        assert f"goes on with layer {done} of prompts 0 to 3 of the shard: {done} layers were kept" in said
        assert re.findall(r"swept (\d+)", said) == [str(layer) for layer in range(done, layers)]
        assert values_of(out) == wanted
        assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert started.jobs(target) == {}


WINDS_UP = "            write_record(outputs, "
"""Where a job's result is whole, and Snakemake does not know it yet."""


@pytest.mark.parametrize(
    ("number", "retries"),
    [(signal.SIGTERM, 1), (signal.SIGTERM, 0), (signal.SIGINT, 0)],
    ids=["tried again", "next command", "Ctrl-C"],
)
def test_an_ablation_that_is_ended_when_its_result_is_whole(
    started: Space, number: signal.Signals, retries: int
) -> None:
    """Snakemake removes it, and the next attempt has the very same file; once that is noted, who asks gets it computed."""
    jobs, slow = started.package / "workflow" / "jobs.py", started.work / "slow"
    lasts = f"            while Path({str(slow)!r}).exists():\n                time.sleep(0.05)\n"
    jobs.write_text(jobs.read_text().replace(WINDS_UP, lasts + WINDS_UP, 1))
    out = started.run / "ablations" / "resample" / "00000.h5"
    target, second = str(out.relative_to(started.work)), second_name(out)
    finished_logs = started.work / "logs/tiny/words/ablate_heads/resample/finished.log"
    started.make(target)
    wanted = values_of(out)
    finished_logs.unlink()
    slow.touch()
    process = start(started, target, "--forcerun", target, "--retries", str(retries))
    deadline = time.monotonic() + TIMEOUT
    while not second.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert out.samefile(second)
    file = second.stat().st_ino
    [job] = children(process.pid, "ablate_heads")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(job, number)
    slow.unlink()
    assert (process.wait(timeout=TIMEOUT) == 0) == bool(retries)
    if not retries:
        assert second.stat().st_ino == file
        started.make(target)
    said = finished_logs.read_text()
    assert "taken back whole: an earlier attempt had finished it" in said
    assert "heads, " not in said
    assert out.stat().st_ino == file
    assert values_of(out) == wanted
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert started.jobs(target) == {}
    finished_logs.unlink()
    started.make(target, "--forcerun", target)
    said = finished_logs.read_text()
    assert "taken back" not in said
    assert "heads, " in said
    assert values_of(out) == wanted
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def text_of_log(path: Path) -> str:
    """What a job has said so far; nothing before it began."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return ""


def values_of(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        return {name: variable[...].tobytes() for name, variable in file.items()}


def children(parent: int, script: str) -> list[int]:
    """Processes of a run that run a script."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (path / "cmdline").read_bytes().decode(errors="replace")
            if os.getpgid(int(path.name)) == parent and f".{script}.py" in command and "snakemake\0" not in command:
                found.append(int(path.name))
    return found


def read(path: Path) -> Any:
    """A result as a later step reads it first, whatever kind it is."""
    match path.suffix:
        case ".h5":
            with h5py.File(path) as file:
                kind = file.attrs["kind"]
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            with open_hdf5(path, kind) as dataset:
                return dataset.load()
        case ".parquet":
            return read_table(path)
        case ".json" if path.name != "manifest.json" and "snapshots" not in path.parts:
            return read_json(path)
    kind = path.parent.parent.name
    return verify_manifest(path.parent / "manifest.json", {"models": "model", "corpora": "corpus"}[kind])


def samples(finished: Space) -> dict[str, Path]:
    """One file of every kind that a later step reads."""
    run, snapshots = finished.run, finished.work / "results" / "snapshots"
    found = {path.parent.relative_to(run).as_posix(): path for path in sorted(run.glob("**/00000.h5"))}
    found |= {path.name: path for path in run.glob("*.h5")}
    found |= {path.name: path for path in run.glob("*.json")}
    found |= {path.name: path for path in (run / "tables" / "resample").glob("*.parquet")}
    models = snapshots / "models" / "tiny"
    return found | {
        path.name: path for path in (*models.iterdir(), snapshots / "corpora" / "words" / "documents.jsonl")
    }


def test_every_kind_of_file_is_refused_when_it_is_damaged(finished: Space, tmp_path: Path) -> None:
    """Cut at six lengths, and by single bits: none gives another value than was written."""
    files = samples(finished)
    assert len(files) > 40
    rng = np.random.default_rng(SEED)
    for name, path in files.items():
        place = tmp_path / "results" / path.relative_to(finished.work / "results")
        shutil.copytree(path.parent, place.parent, dirs_exist_ok=True)
        content, wanted = place.read_bytes(), text_of(read(place))
        for share in SHARES:
            place.write_bytes(content[: int(share * len(content))])
            with pytest.raises((ValueError, OSError)) as caught:
                read(place)
            assert len(str(caught.value).splitlines()) <= 2, name
        noticed = 0
        for _ in range(FLIPS):
            at, bit = rng.integers(len(content)), rng.integers(8)
            place.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            try:
                assert text_of(read(place)) == wanted, f"{name}: bit {bit} of byte {at}"
            except (ValueError, OSError, KeyError):
                noticed += 1
        assert noticed, name
        shutil.rmtree(tmp_path / "results")


def text_of(value: Any) -> str:
    """What was read, as text that is the same only where every value is."""
    if hasattr(value, "variables"):
        return str({name: (of.dims, of.values.tobytes()) for name, of in sorted(value.variables.items())})
    return value.to_csv() if hasattr(value, "to_csv") else str(value)


def test_a_clock_that_is_set_back(copied: Space, finished: Space) -> None:
    """Results that are older than what they are made of by the clock, though made later: made once more at most."""
    later = time.time() + 3600
    for path in (copied.work / "text").iterdir():
        os.utime(path, (later, later))
    copied.make()
    assert_undisturbed(copied, finished)


def test_results_that_were_moved(copied: Space, finished: Space, tmp_path: Path) -> None:
    """To another place, as `cp -a` or `rsync -a` do it: nothing is made again."""
    moved = copied.copy(tmp_path / "elsewhere")
    shutil.rmtree(copied.root)
    assert_undisturbed(moved, finished)


@pytest.mark.parametrize("where", ["home", "temporary folder"])
def test_a_place_outside_the_run_that_cannot_be_written(copied: Space, finished: Space, where: str) -> None:
    target = "results/tiny/words/figures/token_noise.png"
    changed = {"TMPDIR": "/proc/none"}
    if where == "home":
        # Snakemake itself keeps a cache: elsewhere, if it is told so.
        changed = {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none", "XDG_CACHE_HOME": str(copied.root / "cache")}
    done = subprocess.run(
        copied.command(target, "--forcerun", "draw_token_noise", "ablate_layers"),
        cwd=copied.work,
        env={**copied.environment, **changed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_undisturbed(copied, finished)
