"""What failed in a run, a line a job: rule, shard, reason and log, by what Snakemake, jobs and scheduler wrote down."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

STOPPED = "stopped by a signal"
"""How a job's last line begins that was told to end, for which the scheduler has the reason."""
MOST = 20
"""Lines; further failures are counted."""

_JOB = re.compile(r"^( *)Error in rule (\w+):$")
_GROUP = re.compile(r"^ +message: Error in group (\w+)$")
_SUBMITTED = re.compile(r"^Job \S+ has been submitted with SLURM jobid \S+ \(log: (.*/group_(\w+?)_.*\.log)\)\.$")
_ON_SLURM = re.compile(r"^SLURM run ID: ")
_FIELD = re.compile(r"^( +)(\w+): (.*)$")
_DONE = re.compile(r"^ *Finished jobid: (\S+) ")
_SHOWN = re.compile(r"^ *Logfile .*:$")
_RULE = re.compile(r"^ *=+$")
_SHARD = re.compile(r"(?:/(resample|mean|zero))?/(\d+)\.h5$")
_HINT = " (check log file(s) for error details)"
_SAID = re.compile(r"(?:Error: |(?=\w*(?:Error|Exception|Interrupt)\b))(.+)")
"""The last line of a job's log: ours, or an exception as Python shows it."""
_REASONS = {
    "out of memory": r"out.of.memory|oom.kill|exceeded (job )?memory limit",
    "time limit": r"due to time limit|status is: 'TIMEOUT'",
    "its node failed": r"node.fail",
    "cancelled": r"status is: 'CANCELLED|\*\*\* (JOB|STEP) .*CANCELLED",
}
"""By reason, what schedulers say of it; the first that is found counts, as a job that is killed is cancelled, too."""
_REFUSED = re.compile(r"The error message was '(.*?)'?\.?$")
_NOT_SUBMITTED = (
    "the scheduler did not take it: `--verbose` shows what it said, or ask for fewer threads or less memory"
)
_UNTOLD = "it ended without a word, as a process does that is killed: for memory, most often"


def failures(logs: Iterable[Path]) -> list[str]:
    """Jobs that failed for good: what each was, why, and where to read on.

    Args:
        logs: Snakemake's own of the run.
    """
    lines = [line for log in logs for line in _own(_text(log).splitlines())]
    # Of Slurm alone it is written down which groups were submitted.
    unknown = _NOT_SUBMITTED if any(map(_ON_SLURM.match, lines)) else _UNTOLD
    failed, groups = dict[str, str](), dict[str, Path]()
    group = ""
    for number, line in enumerate(lines):
        if done := _DONE.match(line):
            failed.pop(done[1], None)  # at another attempt
        elif submitted := _SUBMITTED.match(line):
            groups[submitted[2]] = Path(submitted[1])
        elif of_group := _GROUP.match(line):
            group = of_group[1]
            failed[group] = _of_group(group, groups.pop(group, None), unknown)
        elif job := _JOB.match(line):
            fields = dict(_fields(lines[number + 1 :], indent=len(job[1])))
            told = _of_job(job[2], fields, alone=not job[1])
            if told:
                failed[fields.get("jobid", str(number))] = told
                if job[1]:
                    failed.pop(group, None)
    found = list(dict.fromkeys(failed.values()))
    more = len(found) - MOST
    return found[:MOST] + ([f"and {more} more"] if more > 0 else [])


def _own(lines: list[str]) -> Iterator[str]:
    """A log without the logs of jobs shown in it, which may be Snakemake's own, with numbers of jobs that mean others."""
    within: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if within and line == within[-1]:
            within.pop()
        elif _RULE.match(line) and _SHOWN.match(before):
            within.append(line)
        elif not within:
            yield line


def _fields(lines: list[str], indent: int) -> Iterator[tuple[str, str]]:
    """What is said of a job, by name, up to its last field; a message may have several lines, of which the first is taken."""
    for line in lines:
        field = _FIELD.match(line)
        if line.startswith("[") or (field and len(field[1]) <= indent):
            return
        if field and len(field[1]) == indent + 4:
            yield field[2], field[3]
        if field and field[2] == "log":
            return


def _of_group(name: str, log: Path | None, unknown: str) -> str:
    if log is None:
        return f"group {name}: {unknown}"
    return f"group {name}: {_of_scheduler(_text(log)) or _UNTOLD}. Log: {log}"


def _of_job(rule: str, fields: dict[str, str], alone: bool) -> str:
    """A job that failed; nothing of one that went down with its group and says nothing itself."""
    logs = [Path(name) for name in fields.get("log", "").removesuffix(_HINT).split(", ") if name]
    own, *others = map(_text, logs) if logs else [""]
    if own.rstrip().endswith("Interrupted."):
        return ""  # by Ctrl-C, as Snakemake says
    said = _SAID.match(next((line for line in reversed(own.splitlines()) if line.strip()), ""))
    reason = said[1].rstrip(".") if said else ""
    if alone and (not reason or reason.startswith(STOPPED)):
        message = fields.get("message", "")
        refused = _REFUSED.search(message)
        reason = refused[1] if refused else _of_scheduler("\n".join([message, *others])) or reason or _UNTOLD
    shard = _SHARD.search(fields.get("output", "").split(", ")[0])
    name = f"{rule}, shard {shard[2]}{f' ({shard[1]})' if shard[1] else ''}" if shard else rule
    return f"{name}: {reason}. Log: {logs[0] if logs else 'none'}" if reason else ""


def _of_scheduler(text: str) -> str:
    return next((reason for reason, words in _REASONS.items() if re.search(words, text, re.IGNORECASE)), "")


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
