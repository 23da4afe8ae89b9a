"""The machine: which device, repeatable kernels, how many cases at a time, and the facts stored beside a result."""

import functools
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from medseg_attack import __version__
from medseg_attack.errors import InputError, is_out_of_memory
from medseg_attack.storage.ranks import local_index
from medseg_attack.storage.workers import cores

_PACKAGES = ("torch", "monai", "segmentation-models-pytorch", "numpy", "medseg-attack")

FIRST = 8  # cases per batch that a search for the size begins with
GAIN = 1.05  # of cases per second that a doubled batch must bring to be doubled again


def pick_device(text: str = "auto") -> torch.device:
    """The device of that name; `auto` is a GPU, else the CPU.

    The GPU is the first one; processes that torchrun started on one machine share its GPUs out.

    Raises:
        InputError: it is not a device's name, or this machine has no such device.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
        if text == "cuda" and (index := local_index() % torch.cuda.device_count()):
            text = f"cuda:{index}"
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"expected a device such as auto, cpu, cuda, cuda:1 or mps, got {text!r}; write --device cpu")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if device.type == "cpu":
        limit_threads()
    if (device.index or 0) >= count:
        raise InputError(
            f"expected {text} on this machine, got {count} {device.type} devices; use --device cpu, "
            "or install a torch that was built for this GPU"
        )
    return device


def limit_threads() -> None:
    """Gives torch no more threads than the cores that this process may use; torch counts those of the whole machine.

    In a container with a quota of 2 of 64 cores, 64 threads wait for one another. A number that is set with
    OMP_NUM_THREADS stays.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def stdout_on_stderr() -> AbstractContextManager[Any]:
    """A scope in which what is printed goes to stderr: code of others runs in it, and stdout is for results."""
    return redirect_stdout(sys.stderr)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """A scope in which the CPU uses only kernels that give the same bits twice, with as many threads.

    On a GPU several kernels that networks need have no such form. There it is a scope of full float32: cuDNN would
    otherwise round the inputs of convolutions to the 10 bits of TF32, by default.
    """
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        if device.type == "cpu":
            torch.set_deterministic_debug_mode("error")  # its other form loads torch's compiler: 80 MB
            memory.fill_uninitialized_memory = False  # costs time; nothing here reads it
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """A scope with its own random numbers (initial weights, dropout); outside, none were drawn."""
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done what it was asked to, since a clock that is read before says too little."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(device: torch.device) -> float:
    """The most memory so far in MB: of the tensors on a GPU, else of this process; NaN where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def memory_mb(work: Callable[[], object], device: torch.device) -> float:
    """The most memory in MB that a call adds to what is in use before it; NaN where it is not known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        trim_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux forgets the peak so far
        before = _status_kib("VmRSS")
        work()
        return (_status_kib("VmHWM") - before) * 1024 / 1e6
    except OSError:
        work()
        return float("nan")


def trim_memory() -> None:
    """Returns freed memory that the allocator keeps to the system; without glibc nothing happens."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@dataclass
class BatchSize:
    """The number of cases per batch.

    An automatic one doubles while that attacks more cases per second, and halves where the memory does not suffice.
    Rows do not depend on it by more than float32 kernels do; see `evaluation.studies.opened.RunOptions`.

    Attributes:
        size: cases per batch now.
        is_automatic: whether it may change.
        grows: whether it may still double.
    """

    size: int = FIRST
    is_automatic: bool = True
    grows: bool = True
    _rate: float = 0.0  # cases per second of the size before

    @classmethod
    def of(cls, size: int | None) -> "BatchSize":
        """The batch size of that many cases; an automatic one if it is None."""
        return cls() if size is None else cls(size, is_automatic=False)

    def note(self, cases: int, seconds: float) -> None:
        """Takes into account how long a chunk of so many cases took; one that fills no batch says nothing."""
        if not self.is_automatic or not self.grows or cases <= self.size:
            return
        rate = cases / seconds
        if rate < GAIN * self._rate:
            self.size, self.grows = self.size // 2, False
        else:
            self.size, self._rate = 2 * self.size, rate

    def halve(self, error: Exception, cases: int) -> None:
        """Halves the size, after a batch of so many cases met an error, and says so.

        Raises:
            Exception: `error`, if the size is a given one, the batch was of one case, or memory was not the reason.
        """
        if not self.is_automatic or cases == 1 or not is_out_of_memory(error):
            raise error
        self.size, self.grows = cases // 2, False
        logging.getLogger(__name__).warning(
            "note: %d cases per batch need more memory than there is; going on with %d", cases, self.size
        )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result; "" for one without a version."""
    result = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            result[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name.replace("-", "_")] = ""
    return result


def provenance() -> dict[str, str]:
    """Date (UTC), host, and the version and commit of this code; the commit is "" where it is not known."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "host": platform.node(), "version": __version__, "commit": commit()}


@functools.cache
def commit() -> str:
    """The commit of this code, with "+" if files were changed since: of its git checkout, or of its installation.

    An installation from a repository names its commit in `direct_url.json` (PEP 610).
    """
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout.strip()
    with suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        text = importlib.metadata.distribution("medseg-attack").read_text("direct_url.json")
        return str(json.loads(text or "{}")["vcs_info"]["commit_id"])
    return ""
