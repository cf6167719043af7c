"""What is told of jobs that failed, from logs as Snakemake, its Slurm plugin, Slurm and jobs write them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from selfrepair.workflow.failures import MOST, failures

OWN = "logs/tiny/words/ablate_heads/zero/00012.log"
SLURM = ".snakemake/slurm_logs/rule_ablate_heads/tiny_words_zero_00012/7.log"
FAILED = (
    "SLURM-job '7' failed, SLURM status is: '{}'. Detailed failure reason unavailable (status command is not 'sacct')."
)


def error(message: str, jobid: int = 3, indent: str = "", own: str = OWN) -> str:
    """A job's failure as Snakemake's log has it."""
    lines = [
        "Error in rule ablate_heads:",
        f"    message: {message}",
        f"    jobid: {jobid}",
        "    input: results/tiny/words/tokens.h5",
        f"    output: results/tiny/words/ablations/zero/{Path(own).stem}.h5",
        f"    log: {own}, {SLURM} (check log file(s) for error details)",
        "    external_jobid: 7",
        f"Logfile {own}:",
    ]
    return "".join(f"{indent}{line}\n" for line in lines)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.chdir(tmp_path)

    def tell(snakemake: str, own: str | None = None, slurm: str | None = None) -> list[str]:
        for name, text in ((OWN, own), (SLURM, slurm), ("snakemake.log", snakemake)):
            if text is not None:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_text(text, encoding="utf-8")
        return failures([Path("snakemake.log")])

    return tell


@pytest.mark.parametrize(
    ("own", "slurm", "message", "reason"),
    [
        ("a line\nTraceback (most recent call last):\n\nError: 00012.h5 is damaged\n", "", "None", "00012.h5 is damaged"),
        ("Traceback (most recent call last):\nRuntimeError: no\n\nRuntimeError('no')\n", "", "None", "RuntimeError('no')"),
        ("", "slurmstepd: error: Exceeded job memory limit\nJOB 7 ON n CANCELLED AT\n", "", "out of memory"),
        ("", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.\n", "", "out of memory"),
        (None, "", FAILED.format("OUT_OF_MEMORY"), "out of memory"),
        ("", "slurmstepd: error: *** JOB 7 ON n CANCELLED AT 2026 DUE TO TIME LIMIT ***\n", "", "time limit"),
        (None, None, FAILED.format("TIMEOUT"), "time limit"),
        ("a line\n\nError: stopped by a signal (SIGTERM): why\n", "", FAILED.format("TIMEOUT"), "time limit"),
        ("a line\n\nError: stopped by a signal (SIGTERM): why\n", "", "None", "stopped by a signal (SIGTERM): why"),
        ("", "", FAILED.format("NODE_FAIL"), "its node failed"),
        ("", "slurmstepd: error: *** JOB 7 ON n CANCELLED AT 2026-11-27 ***\n", FAILED.format("CANCELLED"), "cancelled"),
        (None, None, "SLURM sbatch failed. The error message was 'sbatch: error: no'.", "sbatch: error: no"),
        (None, None, "SLURM sbatch failed. The error message was 'sbatch: error: no: x\nsbatch: error: so'.\n    sbatch call:\n"
         "        sbatch --parsable\nFor further error details see the log.", "sbatch: error: no: x"),
        ("a line\n", "", "None", "it ended without a word, as a process does that is killed: for memory, most often"),
    ],
)  # fmt: skip
def test_a_job_is_told_in_a_line(
    told: Callable[..., list[str]], own: str | None, slurm: str | None, message: str, reason: str
) -> None:
    assert told(error(message), own, slurm) == [f"ablate_heads, shard 00012 (zero): {reason}. Log: {OWN}"]


def test_what_succeeded_at_another_attempt_and_what_was_interrupted_is_left_out(told: Callable[..., list[str]]) -> None:
    assert told(error("None") + "Trying to restart job 3.\nFinished jobid: 3 (Rule: ablate_heads)\n", "") == []
    assert told(error("None"), "\nInterrupted.\n") == []


@pytest.mark.parametrize("indent", ["", "    "])
def test_logs_that_are_shown_are_not_the_runs_own(told: Callable[..., list[str]], indent: str) -> None:
    """With show-failed-logs: a job's log on Slurm is that of a Snakemake, which counts its own jobs, and may show logs, too."""
    other = OWN.replace("00012", "00013")
    ends, within = "=" * 80, "=" * 50
    shown = [ends, "SNAKEMAKE", "=========", f"Logfile {other}:", within, "a line", within]
    for line in ["Finished jobid: 3 (Rule: ablate_heads)", *error("None", 3, own=other).splitlines(), ends]:
        shown.append(line)
    text = error("None", 3) + "".join(f"{indent}{line}\n" for line in shown) + error("None", 4, own=other)
    assert [line.split(":")[0] for line in told(text)] == [
        f"ablate_heads, shard {at} (zero)" for at in ("00012", "00013")
    ]


def test_of_a_group_the_job_that_failed_is_told(told: Callable[..., list[str]]) -> None:
    group = "[Fri Nov 27 00:33:25 2026]\n    message: Error in group tables\n    jobs:\n        rule ablate_heads:\n"
    other = "logs/tiny/words/ablate_heads/zero/00013.log"
    both = group + error("None", 3, "    ") + error("None", 4, "    ", other)
    assert told(both) == [
        "group tables: it ended without a word, as a process does that is killed: for memory, most often"
    ]
    [refused] = told("SLURM run ID: 1b-2c\n" + both)
    assert refused.startswith("group tables: the scheduler did not take it: `--verbose` shows what it said")
    log = ".snakemake/slurm_logs/group_tables_ablate_heads/9.log"
    submitted = f"Job 1b-2c has been submitted with SLURM jobid 9 (log: {log}).\n"
    Path(log).parent.mkdir(parents=True)
    Path(log).write_text("Exceeded job memory limit\n", encoding="utf-8")
    assert told(submitted + both, "") == [f"group tables: out of memory. Log: {log}"]
    assert told(submitted + both, "Error: no.\n") == [f"ablate_heads, shard 00012 (zero): no. Log: {OWN}"]


def test_many_failures_are_counted(told: Callable[..., list[str]]) -> None:
    shards = "".join(error("None", at, own=OWN.replace("00012", f"{at:05d}")) for at in range(MOST + 5))
    lines = told(shards)
    assert len(lines) == MOST + 1
    assert lines[-1] == "and 5 more"
