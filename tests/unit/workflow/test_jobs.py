"""What a rule's script runs in: everything it says goes to its log, and it gets the rule's threads."""

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("error")

# A job changes its whole process (streams, environment, logging), so that each test runs one in a process of its own.
JOB = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from snakemake.iocontainers import Params
from selfrepair.workflow.jobs import job

params = Params(fromdict={"code": "c0de", "seed": 4})
resources = {"mem_mb": 1000, "disk_mb": 1} | json.loads(os.environ.get("ASKED", "{}"))
snakemake = SimpleNamespace(
    log=[sys.argv[1]], threads=1, params=params, input=sys.argv[2:], output=[sys.argv[1]], resources=resources, rule="a_rule",
    wildcards=Params(fromdict=json.loads(os.environ.get("WILDCARDS", "{}"))),
)
"""


def run(tmp_path: Path, body: str, *inputs: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a script whose lines stand within `with job(...)`; what became of it, and its log."""
    log = tmp_path / "logs" / "deep" / "rule.log"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    script = f"{JOB}\nwith job(snakemake) as provenance:\n{lines}\nprint('after the job')\n"
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    kept.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(log), *map(str, inputs)],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        check=False,
    )
    return done, log.read_text(encoding="utf-8")


def said(log: str) -> str:
    """A log without the line that says what memory was taken."""
    return "".join(line for line in log.splitlines(keepends=True) if "peak memory: " not in line)


def test_output_of_python_c_and_children_goes_to_the_log(tmp_path: Path) -> None:
    done, log = run(
        tmp_path,
        "import logging, os, subprocess\n"
        "print('printed')\n"
        "print('complained', file=sys.stderr)\n"
        "os.write(1, b'written by C\\n')\n"
        "os.write(2, b'an error of C\\n')\n"
        "subprocess.run(['sh', '-c', 'echo a child; echo its error >&2'], check=True)\n"
        "logging.getLogger('selfrepair.x').info('a log line')\n"
        "logging.getLogger('selfrepair.x').debug('too much')",
    )
    assert done.returncode == 0
    for words in ("printed", "complained", "written by C", "an error of C", "a child", "its error"):
        assert words in log.splitlines()
    assert "selfrepair.x: a log line" in log
    assert "too much" not in log
    # And back to the terminal afterwards.
    assert (done.stdout, done.stderr) == ("after the job\n", "")


def test_a_value_error_ends_the_log_in_words_for_the_user(tmp_path: Path) -> None:
    done, log = run(tmp_path, "raise ValueError('got 1, wanted 2: change it')")
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "")
    assert log.startswith("Traceback (most recent call last):")
    assert log.endswith("\nError: got 1, wanted 2: change it\n")


def test_any_other_error_ends_the_log_with_its_kind(tmp_path: Path) -> None:
    done, log = run(tmp_path, "{}['key']")
    assert done.returncode == 1
    assert log.startswith("Traceback (most recent call last):")
    assert log.endswith("\nKeyError('key')\n")


def test_too_little_memory_ends_the_log_in_words_for_the_user(tmp_path: Path) -> None:
    """Really too little: torch is asked for more than any machine has."""
    body = (
        "import torch\n"
        "try:\n"
        "    torch.empty(10**15)\n"
        "except RuntimeError as error:\n"
        "    raise ValueError('config') from error"
    )
    done, log = run(tmp_path, body)
    assert done.returncode == 1
    last = log.splitlines()[-1]
    assert last.startswith("Error: out of memory: another 4,000 TB could not be had (")
    assert last.endswith(" are here): `selfrepair plan` says what takes it, and which key of the config to change")
    assert "DefaultCPUAllocator" in log


def test_an_import_error_is_in_the_log(tmp_path: Path) -> None:
    done, log = run(tmp_path, "from selfrepair.no_such_module import work")
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'selfrepair.no_such_module'" in log
    assert done.stderr == ""


def test_what_provenance_needs_fails_into_the_log_too(tmp_path: Path) -> None:
    done, log = run(tmp_path, "pass", tmp_path / "missing.json")
    assert done.returncode == 1
    assert "FileNotFoundError" in log
    assert done.stderr == ""


def test_a_job_that_is_interrupted_stops_without_a_traceback(tmp_path: Path) -> None:
    done, log = run(tmp_path, "print('so far')\nraise KeyboardInterrupt")
    assert done.returncode == 130
    assert said(log) == "so far\n\nInterrupted.\n"
    assert (done.stdout, done.stderr) == ("", "")


def test_libraries_get_the_rules_threads(tmp_path: Path) -> None:
    body = (
        "import os, torch\n"
        "names = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'TOKENIZERS_PARALLELISM')\n"
        "print(json.dumps([torch.get_num_threads(), *(os.environ[name] for name in names)]))"
    )
    done, log = run(tmp_path, body, OMP_NUM_THREADS="7")
    assert done.returncode == 0, log
    assert json.loads(said(log)) == [1, "1", "1", "1", "false"]


def test_a_job_is_offline(tmp_path: Path) -> None:
    _, log = run(tmp_path, "from huggingface_hub import constants\nprint(constants.HF_HUB_OFFLINE)")
    assert said(log) == "True\n"


def test_only_jobs_that_ask_for_it_are_online(tmp_path: Path) -> None:
    repository = Path(__file__).parents[3]
    online = {path.stem for path in (repository / "scripts").glob("*.py") if "offline=False" in path.read_text()}
    assert online == {"snapshot_corpus", "snapshot_model"}


def test_provenance_holds_code_config_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("words")
    _, log = run(tmp_path, "print(json.dumps(provenance))", tmp_path / "in.txt")
    found = json.loads(said(log))
    assert (found["code"], found["config"]) == ("c0de", {"seed": 4})
    assert list(found["upstream"]) == [(tmp_path / "in.txt").as_posix()]


def test_progress_of_a_job_is_in_its_log_and_of_anything_else_on_the_terminal(tmp_path: Path) -> None:
    """A pseudo-terminal stands for the user's; the log gets plain lines, and the bar of the run has the terminal."""
    log = tmp_path / "rule.log"
    script = (
        f"{JOB}\nwith job(snakemake):\n    from selfrepair.workflow.progress import Progress\n"
        "    with Progress(2, 'ablating', 'head') as bar:\n        bar.advance(2)\n"
        "with Progress(3, 'by hand', 'head') as bar:\n    bar.advance(3)\n"
    )
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    done = subprocess.run([sys.executable, "-c", script, str(log)], stdout=inner, stderr=inner, check=False)
    # Read before the last writer closes, and fail rather than wait where nothing was written.
    os.set_blocking(outer, False)
    shown = os.read(outer, 100_000).decode()
    os.close(inner)
    os.close(outer)
    assert done.returncode == 0
    assert "ablating" not in shown
    assert "by hand, heads" in shown
    assert "3/3" in shown
    assert "ablating: 2 of 2 heads" in log.read_text()
    assert "\x1b" not in log.read_text()


@pytest.mark.parametrize(("asked", "kind"), [({"mem_mb": 10**9}, "memory"), ({"disk_mb": 10**9}, "disk")])
def test_a_job_that_does_not_fit_stops_before_its_work(tmp_path: Path, asked: dict[str, int], kind: str) -> None:
    done, log = run(tmp_path, "print('worked')", ASKED=json.dumps(asked))
    assert done.returncode == 1
    assert "worked" not in log
    last = log.splitlines()[-1]
    assert last.startswith(f"Error: this job (a_rule) needs 1,000 TB of {kind}, ")
    assert last.endswith("`selfrepair plan` says what takes it, and which key of the config to change")


@pytest.mark.parametrize("name", [".rule.kept/a.kept", ".rule.whole"])
def test_what_an_earlier_attempt_has_kept_is_part_of_the_disk_that_is_asked_for(tmp_path: Path, name: str) -> None:
    """A file without content is as long as one that takes the disk."""
    kept = tmp_path / "logs" / "deep" / name
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        file.truncate(2 * 10**12)
    asked = json.dumps({"disk_mb": shutil.disk_usage(tmp_path).free // 10**6 + 10**6})
    done, log = run(tmp_path, "print('worked')", ASKED=asked)
    assert done.returncode == 0, log
    kept.unlink()
    done, log = run(tmp_path, "print('worked')", ASKED=asked)
    assert done.returncode == 1, log


def test_a_second_signal_stops_nothing_that_is_written_at_the_end(tmp_path: Path) -> None:
    """As a scheduler and Snakemake both send one."""
    done, log = run(
        tmp_path,
        "import signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "finally:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('all of it is written')\n",
    )
    assert done.returncode == 143
    assert "all of it is written\n" in log


def test_a_log_says_what_memory_was_taken(tmp_path: Path) -> None:
    _, log = run(tmp_path, "held = bytearray(300_000_000)")
    [took] = [int(line.split("peak memory: ")[1].split()[0]) for line in log.splitlines() if "peak memory: " in line]
    assert 300 < took < 600


def test_a_job_that_its_scheduler_stops_says_so_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    done, log = run(
        tmp_path,
        "import signal\n"
        "from selfrepair.files.sealed import write_whole\n"
        "with write_whole(Path(sys.argv[1]).with_name('table.csv')) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n",
    )
    assert done.returncode == 143
    assert (
        log.strip()
        .splitlines()[-1]
        .startswith("Error: stopped by a signal (SIGTERM): the scheduler's time limit is up")
    )
    assert [path.name for path in (tmp_path / "logs" / "deep").iterdir()] == ["rule.log"]


def test_logs_of_finished_shards_are_gathered_and_that_of_a_failed_one_stays(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "deep" / "rule.log"
    with pytest.raises(FileNotFoundError):
        run(tmp_path, "print('the first')", WILDCARDS='{"shard": "00000"}')
    assert not log.exists()
    _, failed = run(tmp_path, "raise ValueError('the second')", WILDCARDS='{"shard": "00001"}')
    assert "Error: the second" in failed
    with pytest.raises(FileNotFoundError):
        run(tmp_path, "print('the second again')", WILDCARDS='{"shard": "00001"}')
    text = (log.parent / "finished.log").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if "peak memory" not in line] == [
        *("== rule", "the first", "== rule", "the second again"),
    ]
    assert [path.name for path in log.parent.glob("*.log")] == ["finished.log"]
