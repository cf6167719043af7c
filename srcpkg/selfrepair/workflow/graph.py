"""The jobs of a run as Snakemake sees them, and how what they have made differs from what they would make now."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from selfrepair.workflow.jobs import NOT_CONFIG
from selfrepair.workflow.provenance import identity_of
from selfrepair.workflow.records import changed_files, read_code, read_record
from selfrepair.workflow.schema import shown

_DIGEST = re.compile(r"[0-9a-f]{64}")
LOOKING = "SELFREPAIR_LOOKS"
"""Set in the environment where the workflow is read to look at it: it must not do so in turn (rules/common.smk)."""
MOST = 3
"""Modules, files or values that a line names; the others are counted."""


@dataclass(frozen=True)
class Job:
    """A job of a run.

    Attributes:
        rule: Its rule.
        outputs: Files that it makes.
        inputs: Files that it reads.
        params: By name, among them values of the config, and the digest of its code.
        modules: Digests of the modules of its code, by path.
        stale: Snakemake would run it.
        because: What Snakemake says that is not in the job's record: what is missing, unfinished or newer.
        follows: Rules that would run before it, whose results it reads.
        forgotten: Snakemake has no notes of how its files were made.
    """

    rule: str
    outputs: tuple[Path, ...]
    inputs: tuple[Path, ...]
    params: Mapping[str, Any]
    modules: Mapping[str, str]
    stale: bool
    because: list[str] = field(default_factory=list)
    follows: list[str] = field(default_factory=list)
    forgotten: bool = False

    @property
    def made(self) -> bool:
        """Whether the first of its files is there."""
        return self.outputs[0].exists()


def read_jobs(snakefile: Path, configfiles: Sequence[Path], targets: Iterable[str] = ()) -> list[Job]:
    """The jobs that make some targets, each before those that read what it makes. Runs nothing.

    Args:
        snakefile: The workflow's.
        configfiles: Overlays of its config.
        targets: Rules or files; none means the default target.

    Raises:
        ValueError: Snakemake cannot put the jobs together: what it says.
        SystemExit: The config is wrong, which has been said.
    """
    with _workflow(snakefile, configfiles, targets) as workflow:
        return [_job(job, workflow) for job in _in_order(workflow.dag)]


def take_notes(snakefile: Path, configfiles: Sequence[Path]) -> tuple[list[Job], list[Job]]:
    """Give Snakemake the notes that it lacks, of results that are there: where it died before it wrote them, or they were lost.

    A result without notes it takes for what would be made now, and one with the notes of an earlier file for that file. Here a
    result's own provenance decides. What it vouches for is noted as made; all else is noted as unfinished, so that it is made
    again.

    Args:
        snakefile: The workflow's.
        configfiles: Overlays of its config.

    Returns:
        The jobs whose results are what they say, and those that will be run again.

    Raises:
        ValueError: As `read_jobs`.
    """
    made: list[Job] = []
    again: list[Job] = []
    from snakemake.settings.types import ExecutionSettings

    with _workflow(snakefile, configfiles) as workflow:
        workflow.execution_settings = ExecutionSettings()
        notes = workflow.persistence
        for job in _in_order(workflow.dag):
            found = _job(job, workflow)
            if found.made and not all(map(_is_noted, job.output, map(notes.metadata, job.output))):
                if next(differences(found, sure=True), None) is None:
                    workflow.async_run(notes.finished(job))
                    _forget_environment(notes, job)
                    made.append(found)
                else:
                    notes.started(job)
                    again.append(found)
    return made, again


def _forget_environment(notes: Any, job: Any) -> None:
    """Note no environment: that in which the files were made is not known, and Snakemake takes none for any."""
    notes.deactivate_cache()
    for output in job.output:
        key = notes._get_key(output)
        record = notes._read_record(key)
        record.software_stack_hash = None
        notes._write_record(key, record)


def _is_noted(output: Any, note: Any) -> bool:
    """Whether Snakemake's note is of the file that is there; one that is missing it sees by itself."""
    path = Path(str(output))
    return not path.exists() or (note is not None and note.endtime == path.stat().st_mtime)


@contextmanager
def _looking() -> Iterator[None]:
    """Say in the environment that the workflow is read to look at it, as long as the block lasts."""
    before = os.environ.get(LOOKING)
    os.environ[LOOKING] = "yes"
    try:
        yield
    finally:
        os.environ.pop(LOOKING)
        if before is not None:
            os.environ[LOOKING] = before


@contextmanager
def _workflow(snakefile: Path, configfiles: Sequence[Path], targets: Iterable[str] = ()) -> Iterator[Any]:
    """Snakemake's workflow with its jobs put together."""
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import RuleException, WorkflowError
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api, _looking():
        try:
            workflow_api = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=tuple(path.absolute() for path in configfiles)),
                snakefile=snakefile,
            )
            workflow_api.dag(DAGSettings(targets=frozenset(targets), rerun_triggers=_triggers(), force_incomplete=True))
            workflow = workflow_api._workflow
            # As for a summary, for which the API has no more than text.
            workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True, nolock=True)
            workflow._build_dag()
        except (WorkflowError, RuleException) as error:
            raise ValueError(" ".join(str(error).split())) from None
        yield workflow


def _in_order(dag: Any) -> Iterator[Any]:
    """Jobs of this project's rules that make files, each before those that read them; an importing workflow has others."""
    return (
        job for level in dag.toposorted() for job in sorted(level, key=_name) if job.output and job.params.get("code")
    )


def _triggers() -> frozenset[Any]:
    """What makes a job stale, as in profiles/default: all but code, for which the workflow has its own."""
    from snakemake.settings.enums import RerunTrigger

    return frozenset(RerunTrigger.all()) - {RerunTrigger.CODE}


def _name(job: Any) -> str:
    return f"{job.rule.name} {job.output[0] if job.output else ''}"


def _job(job: Any, workflow: Any) -> Job:
    dag, code = workflow.dag, job.rule.module_globals["CODE"]
    reason, params = dag.reason(job), dict(job.params.items())
    because = [
        *(f"{path} is missing" for path in sorted(map(str, reason.missing_output))),
        *(f"{path} was left unfinished" for path in sorted(map(str, reason.incomplete_output))),
        *(f"{path} is newer" for path in sorted(map(str, reason.updated_input))),
    ]
    follows = {
        before.rule.name
        for before in dag.dependencies[job]
        if dag.needrun(before) and before.rule.name != job.rule.name
    }
    return Job(
        rule=job.rule.name,
        outputs=tuple(Path(str(path)) for path in job.output),
        inputs=tuple(Path(str(path)) for path in job.input),
        params=params,
        modules=code.get(str(params.get("code")), {}),
        stale=bool(dag.needrun(job)),
        because=because,
        follows=sorted(follows),
        forgotten=bool(reason.no_metadata),
    )


def differences(job: Job, sure: bool = False) -> Iterator[str]:
    """How a job is asked for otherwise than what is there was made, and what has become of that.

    Args:
        job: A job whose files are there.
        sure: Read every file that it has made and every one that it read, and compare them with what they were.
    """
    record = read_record(job.outputs[0])
    if "code" not in record:
        yield record.get("edited", "no record says how it was made")
        return
    if record.get("code") != job.params.get("code"):
        yield _of_code(read_code(str(record.get("code"))), job.modules)
    config = {name: value for name, value in job.params.items() if name not in NOT_CONFIG}
    yield from _of_values(record.get("config", {}), config)
    read = {path.as_posix() for path in job.inputs}
    upstream = record.get("upstream", {})
    if gone := sorted(upstream.keys() - read):
        yield f"it was made of {some(gone)}, too"
    if new := sorted(read - upstream.keys()):
        yield f"{some(new)} is new to it" if len(new) == 1 else f"{some(new)} are new to it"
    if sure:
        for path in sorted(upstream.keys() & read):
            identity = _identity(Path(path))
            if identity and identity != upstream[path]:
                yield f"{path} is not the one that it was made of"
    yield from changed_files(job.outputs[0], record, sure)


@cache
def _identity(path: Path) -> str:
    """A file's identity, or nothing where the file is not there, or is damaged, which its own job is told."""
    try:
        return identity_of(path) if path.exists() else ""
    except ValueError:
        return ""


def _of_code(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if not old:
        return "its code is another"
    words = {"edited": old.keys() & new.keys(), "removed": old.keys() - new.keys(), "new": new.keys() - old.keys()}
    changed = {
        word: [name for name in sorted(names) if word != "edited" or old[name] != new[name]]
        for word, names in words.items()
    }
    return "code: " + "; ".join(f"{some(names)} {word}" for word, names in changed.items() if names)


def _of_values(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Values that differ, key by key: what each was and is."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _of_values(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif _plain(old) != _plain(new):
        digests = all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in (old, new))
        yield f"{key} changed" if digests else f"{key} {shown(_plain(old))} -> {shown(_plain(new))}"


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def some(names: Sequence[str]) -> str:
    """Names as a line has them: the first few, the others counted."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{', '.join(names[:MOST])}{more}"
