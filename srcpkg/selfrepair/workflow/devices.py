"""A GPU for each job of a machine that has several: a lock on a file for each, held while the job runs.

CUDA takes the first device that it sees, so that all jobs would share one. A scheduler that hands out devices shows a job its
own alone (``CUDA_VISIBLE_DEVICES``), and there is nothing to choose.
"""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """Names of the GPUs that a process started here may use."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


@contextmanager
def device_of_its_own() -> Iterator[None]:
    """Let this process see one GPU that no other job has, where there are several; before torch is imported.

    Raises:
        ValueError: All are taken: more jobs run at a time than there are GPUs.
    """
    devices = visible_devices()
    with ExitStack() as held:
        if len(devices) > 1:
            os.environ[VISIBLE] = held.enter_context(_free(devices))
        yield


@contextmanager
def _free(devices: list[str]) -> Iterator[str]:
    locks = Path(tempfile.gettempdir()) / f"selfrepair-gpus-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    for device in devices:
        with (locks / device.replace("/", "_")).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield device
            return
    raise ValueError(
        f"all {len(devices)} GPUs have a job each: run no more at a time (`--resources gpu={len(devices)}`), or free those "
        "that another run has"
    )
