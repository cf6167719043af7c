"""A Slurm of one node on this machine, of Debian's packages, without systemd or cgroups: `python tests/slurm/one_node.py up`.

It must run as root, and its configuration lie in /etc/slurm: the plugin's job step drops every variable that starts with
SLURM, so that jobs find no other. Two devices that every machine has stand for GPUs.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ETC = Path("/etc/slurm")
STATE = Path(os.environ.get("SLURM_STATE", "/tmp/selfrepair-slurm"))
OURS = "# Of the tests of selfrepair: tests/slurm/one_node.py.\n"
DAEMONS = ("slurmd", "slurmctld", "munged")
GPUS = ("/dev/null", "/dev/zero")
WAIT_S = 60
# A node that is this machine takes all its cores and most of its memory. Jobs that take more memory than they asked for are
# killed within JobAcctGatherFrequency seconds, as without cgroups nothing stops them sooner.
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthInfo=socket={state}/run/munge.sock
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/slurmd
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
EnforcePartLimits=ALL
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MinJobAge=300
KillWait=2
JobRequeue=0
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={host} MaxTime=10 State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Debian's packages, where they are missing."""
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch", "munged")):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", *command], env=environment, check=True, stdout=subprocess.DEVNULL)


def up() -> None:
    """Start what does not run yet, and wait until the node takes jobs.

    Raises:
        RuntimeError: Another Slurm is configured here, or a daemon does not come up.
    """
    conf = ETC / "slurm.conf"
    if conf.exists() and not conf.read_text(encoding="utf-8").startswith(OURS):
        raise RuntimeError(
            f"{conf} is of another Slurm, which is left alone: run these tests on a machine that has none"
        )
    for name in ("ctld", "slurmd", "run", "log"):
        (STATE / name).mkdir(parents=True, exist_ok=True)
    ETC.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
    sizes = {"host": host, "state": STATE, "cpus": os.cpu_count(), "memory": memory, "gpus": len(GPUS)}
    conf.write_text(OURS + CONF.format(**sizes), encoding="utf-8")
    devices = "".join(f"Name=gpu File={device}\n" for device in GPUS)
    (ETC / "gres.conf").write_text(OURS + devices, encoding="utf-8")
    key = STATE / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
    run = STATE / "run"
    if not _pid("munged"):
        files = {"key-file": key, "socket": run / "munge.sock", "pid-file": run / "munged.pid"}
        more = {"log-file": STATE / "log" / "munged.log", "seed-file": STATE / "munge.seed"}
        _start(["munged", "--force", *(f"--{name}={path}" for name, path in {**files, **more}.items())])
    for name in ("slurmctld", "slurmd"):
        if not _pid(name):
            _start([name])
    _until(
        lambda: _answer("sinfo", "-h", "-p", "main", "-o", "%t") in ("idle", "mix", "alloc"), "the node takes no jobs"
    )


def down() -> None:
    """Cancel what is left, stop the daemons, and take the configuration away."""
    _answer("scancel", "--me")
    for name in DAEMONS:
        if pid := _pid(name):
            os.kill(pid, signal.SIGTERM)
            _until(lambda name=name: not _pid(name), f"{name} does not end")
    for name in ("slurm.conf", "gres.conf"):
        path = ETC / name
        if path.exists() and path.read_text(encoding="utf-8").startswith(OURS):
            path.unlink()
    shutil.rmtree(STATE, ignore_errors=True)


def _pid(name: str) -> int | None:
    try:
        pid = int((STATE / "run" / f"{name}.pid").read_text(encoding="utf-8"))
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def _start(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} does not start: {done.stderr.strip()}")


def _answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
    return done.stdout.strip()


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            logs = "".join(path.read_text(errors="replace")[-800:] for path in (STATE / "log").glob("*.log"))
            raise RuntimeError(f"{otherwise}:\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    {"install": install, "up": up, "down": down}[sys.argv[1]]()
