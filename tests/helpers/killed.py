"""Work in a process forked from one that has loaded all; it ends by itself, by Ctrl-C, or by SIGKILL at some moment."""

import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

import medseg_attack

_SERVER: ForkServerContext = multiprocessing.get_context("forkserver")
_OWN = [module.name for module in pkgutil.walk_packages(medseg_attack.__path__, f"{medseg_attack.__name__}.")]
_SERVER.set_forkserver_preload(["torch", "pytest", "monai.networks.nets.unet", "monai.losses", *_OWN])


def killed(work: Callable[..., None], *args: Any) -> None:
    """Runs work that kills its own process, and fails if it ended otherwise."""
    (code,) = exit_codes(work, args)
    assert code == -signal.SIGKILL, f"expected work that is killed, got exit code {code}"


def exit_codes(work: Callable[..., None], *arguments: tuple[Any, ...]) -> list[int | None]:
    """Runs work at once in a process for each tuple of arguments; None: it did not end in four minutes."""
    processes = [_SERVER.Process(target=_alone, args=(work, *each)) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def interrupted(log: Path, words: list[str], begun: Callable[[], bool]) -> int | None:
    """The exit code of a command that gets the signal of Ctrl-C once it has `begun`; what it said is in `log`."""
    process = _SERVER.Process(target=_alone, args=(logged_command, log, words))
    process.start()
    while process.is_alive() and not begun():
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(60)
    return process.exitcode


def logged_command(log: Path, words: list[str]) -> None:
    """A command as a user types it, whose output goes to a file."""
    from medseg_attack.__main__ import main

    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["medattack", *words]
    main()


def _alone(work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    work(*args)


def kill_at(place: Any, function: str, n: int, when: Callable[..., bool] = lambda *args: True) -> None:
    """Kills this process at the n-th call of a function of a module or class, counted from 1, before it does a thing.

    Args:
        when: of the arguments; calls for which it is False are not counted.
    """
    original, count = getattr(place, function), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += when(*args)
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(place, function, counted)


def command_killed_at_file(words: list[str], n: int, name: str = "") -> None:
    """A command that is killed when it would put its n-th file in place, of those with `name` in their path."""
    from medseg_attack.cli import app

    kill_at(os, "replace", n, lambda part, path: name in str(path))
    app(words)


def training_killed_at_step(train: Callable[[], Any], state: Path, n: int) -> None:
    """A training that is killed at its n-th optimiser step after the first epoch that is stored in `state`."""
    kill_at(torch.optim.AdamW, "step", n, lambda *args: state.exists())
    train()
