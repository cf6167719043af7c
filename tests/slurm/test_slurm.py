"""The workflow on a real Slurm: the same results, and what befalls jobs, nodes and Snakemake itself costs none of them."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from workflow.running import TIMEOUT, Space, log_of
from workflow.same import differences

from slurm.conftest import Cluster, queue, until

pytestmark = [pytest.mark.slurm, pytest.mark.filterwarnings("error")]

RUN = "results/tiny/words"
SHARDS = [f"{RUN}/activations/{shard}.h5" for shard in ("00000", "00001")]
SUBMITTED = re.compile(r"has been submitted with SLURM jobid (\d+)")


def test_results_are_those_of_a_local_run_in_few_jobs(cluster: Cluster, finished: Space) -> None:
    """Prompts with their check, and tables with figures, are a job each, whose parts would be jobs of their own otherwise."""
    said = cluster.run()
    assert list(differences(cluster.space.work / "results", finished.work / "results")) == []
    jobs = len(SUBMITTED.findall(said))
    # Eleven stages a shard; prompts, thresholds, averages, the choice of heads, tables, the explorer.
    assert jobs == 2 * 11 + 6, f"{jobs} jobs"
    assert cluster.space.jobs() == {}


def failed(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("Failed: ")]


def test_memory_is_doubled_where_it_was_too_little(ready: Cluster) -> None:
    """And said in those words where twice as much is too little, too."""
    small = ("--set-resources", "cache_activations:mem_mb=420 * attempt")
    said = ready.run(*SHARDS[:1], *small)
    assert len(SUBMITTED.findall(said)) == 2  # attempts
    assert failed(said) == []
    small = ("--set-resources", "cache_activations:mem_mb=400")
    said = ready.run(*SHARDS[1:], *small, status=1)
    [line] = failed(said)
    assert (
        line
        == "Failed: cache_activations, shard 00001: out of memory. Log: logs/tiny/words/cache_activations/00001.log"
    )


def script_runs(cluster: Cluster, name: str) -> list[int]:
    """Python processes of a rule's script itself: Snakemake copies it to a name of its own, below the folder it works in."""
    script = re.compile(rf"{re.escape(str(cluster.space.work))}/.*tmp\w+\.{name}\.py")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(script.fullmatch(word) for word in command):
            found.append(int(folder.name))
    return found


def test_time_is_doubled_where_it_was_too_little(ready: Cluster) -> None:
    process = ready.start(SHARDS[0], "--set-resources", "cache_activations:runtime=1 * attempt")
    until(lambda: bool(script_runs(ready, "cache_activations")), "no job runs")
    os.kill(script_runs(ready, "cache_activations")[0], signal.SIGSTOP)  # a job that is too slow for its minute
    assert process.wait(240) == 0, ready.printed.read_text()
    said = ready.printed.read_text(encoding="utf-8")
    assert "TIMEOUT" in said
    assert failed(said) == []


def test_a_cancelled_job_is_noticed_and_tried_again(ready: Cluster) -> None:
    process = ready.start(SHARDS[0])
    until(lambda: bool(queue("%A")), "nothing is submitted")
    subprocess.run(["scancel", queue("%A")[0]], check=True)
    assert process.wait(120) == 0, ready.printed.read_text()
    assert "CANCELLED" in ready.printed.read_text(encoding="utf-8")


def node(state: str) -> None:
    name = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    change = ["scontrol", "update", f"nodename={name}", f"state={state}", "reason=test"]

    def changed() -> bool:
        """Slurm refuses while an earlier change is on its way, and to resume a node that has come back by itself."""
        if subprocess.run(change, capture_output=True, check=False).returncode == 0:
            return True
        shown = subprocess.run(["sinfo", "-h", "-p", "main", "-o", "%t"], capture_output=True, text=True, check=True)
        return state == "resume" and shown.stdout.strip() in ("idle", "mix", "alloc")

    until(changed, f"the node does not go to {state}")


def test_a_node_that_is_drained_or_goes_down(ready: Cluster) -> None:
    """Jobs wait for a drained node. What ran on one that went down runs again."""
    node("drain")
    process = ready.start(SHARDS[0])
    until(lambda: queue("%T") == ["PENDING"], "no job waits")
    node("resume")
    until(lambda: bool(script_runs(ready, "cache_activations")), "no job runs")
    node("down")
    node("resume")
    assert process.wait(120) == 0, ready.printed.read_text()


def test_nothing_is_lost_when_snakemake_is_killed(ready: Cluster) -> None:
    """Its jobs go on, and what they finish has no notes of Snakemake's: their own provenance says whether it is current."""
    process = ready.start(*SHARDS)
    until(lambda: len(script_runs(ready, "cache_activations")) == 2, "no two jobs run")
    running = script_runs(ready, "cache_activations")
    for job in running:
        os.kill(job, signal.SIGSTOP)  # so that they are still there
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unlocked = ready.space.snakemake("--unlock")
    assert unlocked.returncode == 0, unlocked.stdout
    said = ready.run(*SHARDS, status=1)
    assert "2 jobs of an earlier run of this folder are still in the queue" in said
    for job in running:
        os.kill(job, signal.SIGCONT)
    until(lambda: not queue(), "jobs do not end")
    assert all((ready.space.work / shard).exists() for shard in SHARDS)
    assert ready.space.jobs(*SHARDS) == {}
    ready.space.change("compute.dtype", "float64")
    assert ready.space.jobs(*SHARDS) == {"cache_activations": 2}


def test_a_parameter_that_changed_while_snakemake_was_dead_is_seen(ready: Cluster) -> None:
    """Where the first that sees the results has another config already."""
    process = ready.start(*SHARDS)
    until(lambda: len(script_runs(ready, "cache_activations")) == 2, "no two jobs run")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ready.space.snakemake("--unlock").returncode == 0
    until(lambda: not queue(), "jobs do not end")
    ready.space.change("compute.dtype", "float64")
    said = ready.run(*SHARDS)
    assert "Snakemake lacked notes of 2 results: 0 are what they say, 2 will be made again." in said
    assert len(SUBMITTED.findall(said)) == 2


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        ("slurm_partition='nosuch'", "invalid partition specified: nosuch"),
        ("mem_mb=10000000", "Memory specification can not be satisfied"),
        ("runtime=600", "Requested time limit is invalid"),
    ],
)
def test_what_slurm_refuses_is_one_line(done: Cluster, resource: str, words: str) -> None:
    partition = [] if "partition" in resource else ["cache_activations:slurm_partition='short'"]
    set_resources = [f"cache_activations:{resource}", *partition]
    said = done.run(SHARDS[0], "--forcerun", SHARDS[0], "--set-resources", *set_resources, "--retries", "0", status=1)
    [line] = failed(said)
    assert line.startswith("Failed: cache_activations, shard 00000: ")
    assert re.search(words, line, re.IGNORECASE), line


def test_shards_of_seconds_go_together(done: Cluster) -> None:
    """As docs/cluster.md says it: here two shards of two kinds in one job."""
    files = [f"{RUN}/ablations/{kind}/{shard}.h5" for kind in ("mean", "zero") for shard in ("00000", "00001")]
    together = ("--groups", "ablate_heads=shards", "--group-components", "shards=10")
    said = done.run(*files, "--forcerun", *files, *together)
    assert len(SUBMITTED.findall(said)) == 1
    assert done.space.jobs(*files) == {}


def test_a_group_that_is_cancelled_loses_no_finished_shard(cluster: Cluster) -> None:
    """Snakemake removes what a group of jobs has made, of which one fails: the second attempt has what is finished at once."""
    files = [f"{RUN}/ablations/zero/{shard}.h5" for shard in ("00000", "00001")]
    cluster.space.make(*SHARDS, f"{RUN}/thresholds.h5")
    process = cluster.start(*files, "--groups", "ablate_heads=shards", "--group-components", "shards=10")
    made = (cluster.space.work / files[0]).parent
    until(lambda: bool(list(made.glob(".*.whole"))), "no shard is finished")
    subprocess.run(["scancel", queue("%A")[0]], check=True)
    assert process.wait(TIMEOUT) == 0, cluster.printed.read_text()
    said = cluster.printed.read_text(encoding="utf-8")
    assert "CANCELLED" in said
    assert len(SUBMITTED.findall(said)) == 2
    assert log_of(cluster.space, "ablate_heads/zero/finished").count("taken back whole") >= 1
    assert sorted(path.name for path in made.iterdir()) == ["00000.h5", "00001.h5"]
    assert cluster.space.jobs(*files) == {}


def test_arrays(done: Cluster) -> None:
    """All shards of a rule in one submission; refused where the plugin would wait for ever."""
    arrays = ("--forcerun", *SHARDS, "--slurm-array-jobs", "cache_activations")
    said = done.run(*SHARDS, *arrays, "--jobs", "5", status=1)
    assert "with slurm-array-jobs, jobs is 5, but 6 jobs of a rule may be ready at once" in said
    said = done.run(*SHARDS, *arrays)
    assert "The individual task IDs are 1-2." in said
    assert len(SUBMITTED.findall(said)) == 0
    assert done.space.jobs(*SHARDS) == {}


def test_each_job_has_a_gpu_of_its_own(ready: Cluster) -> None:
    """In the partition of GPUs. There is none here that computes: a job says so, and which Slurm gave it."""
    ready.space.change("compute.device", "cuda")
    arguments = ("--retries", "0", "--keep-going", "--default-resources", "mem_mb=2000", "gpu_partition=gpu")
    said = ready.run(*SHARDS, *arguments, status=1)
    lines = failed(said)
    assert len(lines) == 2
    assert all("compute.device is cuda" in line or "CUDA" in line for line in lines), lines
    script = ready.space.repo / "scripts" / "cache_activations.py"
    text = script.read_text(encoding="utf-8")
    names = "os.environ['SLURM_JOB_PARTITION'], os.environ['CUDA_VISIBLE_DEVICES']"
    told = f"import os, sys\n    print('given', {names}, file=sys.stderr)\n"
    script.write_text(text.replace("    with job(", f"    {told}    with job("), encoding="utf-8")
    ready.run(*SHARDS, *arguments, status=1)
    logs = ready.space.work.glob(".snakemake/slurm_logs/rule_cache_activations/*/*.log")
    seen = [line for log in logs for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("given ")]
    assert sorted(seen) == ["given gpu 0", "given gpu 1"]
