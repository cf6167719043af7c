"""What is said where memory is short, whichever library says so and whatever is made of it on its way."""

import pytest
import torch

from selfrepair.workflow import machine
from selfrepair.workflow.machine import amount, out_of_memory

pytestmark = pytest.mark.filterwarnings("error")

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 393216000 "
    "bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 14.75 GiB of which 13.80 GiB is free. "
    "Including non-PyTorch memory, this process has 970.00 MiB memory in use."
)
MPS = "MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB). Tried to allocate 256.00 MiB on private pool."
MMAP = "unable to mmap 538090408 bytes from file <model.safetensors>: Cannot allocate memory (12)"
NUMPY = "Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"
SAID = {
    "torch on a CPU": (RuntimeError(CPU), "out of memory: another 393 MB could not be had (16 GB are here): ADVICE"),
    "torch on a GPU": (
        torch.OutOfMemoryError(CUDA),
        "out of GPU memory: another 21 GB could not be had (GPU 0 has 14.75 GiB, of which 13.80 GiB are free): ADVICE",
    ),
    "torch elsewhere": (torch.OutOfMemoryError(MPS), "out of GPU memory: another 268 MB could not be had: ADVICE"),
    "a file that is mapped": (RuntimeError(MMAP), "out of memory: another 538 MB could not be had (16 GB are here): ADVICE"),
    "the system": (OSError(12, "Cannot allocate memory"), "out of memory: more could not be had (16 GB are here): ADVICE"),
    "NumPy": (MemoryError(NUMPY), "out of memory: another 8.0 GB could not be had (16 GB are here): ADVICE"),
    "Python": (MemoryError(), "out of memory: more could not be had (16 GB are here): ADVICE"),
    "C++": (RuntimeError("std::bad_alloc"), "out of memory: more could not be had (16 GB are here): ADVICE"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def machine_of_16_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_mb", lambda: 16_000)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (machine.resource.RLIM_INFINITY,) * 2)


@pytest.mark.parametrize(("error", "told"), SAID.values(), ids=SAID)
def test_what_libraries_say_is_told_in_a_line(error: Exception, told: str) -> None:
    assert out_of_memory(error, "ADVICE") == told
    wrapped = ValueError("the model cannot be built")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped, "ADVICE") == told


def test_a_limit_of_the_shell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (2 * 10**9, 2 * 10**9))
    told = "out of memory: more could not be had (16 GB are here, and `ulimit -v` allows a process 2.0 GB): ADVICE"
    assert out_of_memory(MemoryError(), "ADVICE") == told


@pytest.mark.parametrize(
    "error",
    [ValueError("top_fraction takes none"), RuntimeError("shapes cannot be multiplied"), OSError(28, "No space left")],
)
def test_other_errors_are_of_something_else(error: Exception) -> None:
    assert out_of_memory(error) == ""
    hidden = ValueError("said in other words")
    hidden.__context__, hidden.__suppress_context__ = MemoryError(), True
    assert out_of_memory(hidden) == ""


def test_amounts() -> None:
    assert [amount(mb) for mb in (0.4, 950, 3200, 34_000, 1.5e6)] == ["0 MB", "950 MB", "3.2 GB", "34 GB", "1.5 TB"]
