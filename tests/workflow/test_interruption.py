"""A run that is killed, interrupted or finds a damaged file goes on from its finished shards, to the same results."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from workflow.running import TIMEOUT, Space, log_of

pytestmark = pytest.mark.filterwarnings("error")

TARGET = "results/tiny/words/tables/resample/heads.parquet"
SHARDS = {"00000", "00001"}


@pytest.fixture
def unswept(copied: Space) -> Space:
    """A finished run whose resample ablations are gone, logs and tables too."""
    for path in [
        *(copied.run / "ablations" / "resample").iterdir(),
        *(copied.run / "tables" / "resample").iterdir(),
        *(copied.work / "logs" / "tiny" / "words" / "ablate_heads" / "resample").iterdir(),
    ]:
        path.unlink()
    return copied


def shards(space: Space) -> dict[str, Path]:
    return {path.stem: path for path in (space.run / "ablations" / "resample").glob("*.h5")}


def interrupt_sweep(space: Space, number: signal.Signals) -> tuple[str, int, str]:
    """Start the sweep, and send a signal to all of its processes with one shard finished and another under way.

    Returns:
        The finished shard, Snakemake's exit status and what it printed.
    """
    printed = space.root / "printed.txt"
    with printed.open("w") as stream:
        # One core: the second job starts when Snakemake has recorded the first.
        process = subprocess.Popen(
            space.command(TARGET, cores=1),
            cwd=space.work,
            env=space.environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # What was started in the background ignores Ctrl-C, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    logs = space.work / "logs" / "tiny" / "words" / "ablate_heads" / "resample"
    deadline = time.monotonic() + TIMEOUT
    try:
        while not (len(shards(space)) == 1 and len(list(logs.glob("*.log"))) == 2):
            assert process.poll() is None, f"the run ended before it could be interrupted:\n{printed.read_text()}"
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.02)
        (finished,) = shards(space)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.wait(timeout=TIMEOUT)
    while group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert set(shards(space)) == {finished}
    return finished, process.returncode, printed.read_text()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def assert_same(space: Space, finished: Space) -> None:
    """Bit for bit what the run gave that nothing interrupted."""
    assert set(shards(space)) == SHARDS
    for name, path in shards(space).items():
        with h5py.File(path) as got, h5py.File(shards(finished)[name]) as wanted:
            assert set(got) == set(wanted)
            for variable in wanted:
                assert got[variable][...].tobytes() == wanted[variable][...].tobytes(), variable
            assert got.attrs["provenance"] == wanted.attrs["provenance"]
    assert (space.work / TARGET).with_suffix(".csv").read_bytes() == (finished.work / TARGET).with_suffix(
        ".csv"
    ).read_bytes()
    assert [path for path in space.run.rglob("*") if path.name.endswith(".partial")] == []


def test_a_killed_run_goes_on(unswept: Space, finished: Space) -> None:
    """Kill -9, as by the kernel for memory or by a power cut: Snakemake's lock stays, and it says how to remove it."""
    done, status, _ = interrupt_sweep(unswept, signal.SIGKILL)
    assert status == -signal.SIGKILL
    kept = shards(unswept)[done].stat()
    # What a writer leaves that is killed in the middle of a file.
    (under_way,) = SHARDS - {done}
    path = unswept.run / "ablations" / "resample" / f"{under_way}.h5"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom selfrepair.files.sealed import write_whole\n"
        "with write_whole(Path(sys.argv[1])) as half:\n"
        "    half.write_bytes(b'half a file')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [remains] = path.parent.glob(f".{under_way}.h5.*.partial")
    assert remains.read_bytes() == b"half a file"

    locked = unswept.snakemake(TARGET)
    assert locked.returncode != 0
    assert "--unlock" in locked.stdout
    unswept.make("--unlock")
    assert unswept.jobs(TARGET) == {"ablate_heads": 1, "tabulate_heads": 1}
    unswept.make(TARGET)
    after = shards(unswept)[done].stat()
    assert (after.st_mtime_ns, after.st_ino) == (kept.st_mtime_ns, kept.st_ino)
    assert_same(unswept, finished)


def test_an_interrupted_run_goes_on(unswept: Space, finished: Space) -> None:
    """Ctrl-C: no lock stays, so that the same command is all it takes."""
    done, status, printed = interrupt_sweep(unswept, signal.SIGINT)
    assert status != 0
    assert "Traceback" not in printed
    kept = shards(unswept)[done].stat()
    unswept.make(TARGET)
    after = shards(unswept)[done].stat()
    assert (after.st_mtime_ns, after.st_ino) == (kept.st_mtime_ns, kept.st_ino)
    assert_same(unswept, finished)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    """A bad sector: one bit of one value, at the same size and time."""
    times = path.stat()
    with h5py.File(path) as file:
        offset = file["self_repair"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 6] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncate, "is not a whole HDF5 file"), (flip_a_bit, "is damaged (")],
    ids=["truncated", "bit"],
)
def test_a_damaged_file_is_named_and_the_advice_remakes_it(
    copied: Space, finished: Space, damage: Callable[[Path], None], words: str
) -> None:
    path = shards(copied)["00000"]
    damage(path)
    kept = shards(copied)["00001"].stat().st_mtime_ns
    failed = copied.snakemake(TARGET, "--forcerun", "tabulate_heads")
    assert failed.returncode != 0
    name = path.relative_to(copied.work).as_posix()
    log = log_of(copied, "tabulate_heads/resample")
    # In the log's last line, and the log on the terminal.
    last = log.strip().splitlines()[-1]
    assert f"{name} {words}" in last
    assert last in failed.stdout

    advice = re.search(r"`snakemake (.*)`", last)
    assert advice is not None, last
    copied.make(TARGET, *shlex.split(advice[1]))
    assert shards(copied)["00001"].stat().st_mtime_ns == kept
    assert_same(copied, finished)


def test_a_damaged_file_gives_no_result(copied: Space) -> None:
    """The table that was there is removed: none is better than one that does not belong to its inputs."""
    flip_a_bit(shards(copied)["00000"])
    assert (copied.work / TARGET).exists()
    assert copied.snakemake(TARGET, "--forcerun", "tabulate_heads").returncode != 0
    assert not (copied.work / TARGET).exists()


def test_a_damaged_input_of_the_sweep_stops_it(copied: Space) -> None:
    """A checksum of one head's z is checked where the sweep reads it."""
    path = copied.run / "activations" / "00001.h5"
    times = path.stat()
    with h5py.File(path) as file:
        offset = file["z"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset] ^= 128
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    out = "results/tiny/words/ablations/resample/00001.h5"
    failed = copied.snakemake(out, "--forcerun", out)
    assert failed.returncode != 0
    assert "results/tiny/words/activations/00001.h5 is damaged" in log_of(copied, "ablate_heads/resample/00001")
    assert not (copied.work / out).exists()
