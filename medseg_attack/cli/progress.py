"""A bar with the time left on a terminal, and lines of a log elsewhere."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from medseg_attack.cli.consoles import err
from medseg_attack.cli.terminal import say
from medseg_attack.errors import duration
from medseg_attack.escaping import visible

MINUTE = 60.0  # seconds between two lines off a terminal
OTHERS = ("watch", "demo")  # commands that show others at work
_shown: list[str] = []  # titles of the progress that is shown by now


@contextmanager
def progress_bar(
    title: str, total: int, *, show: bool = True, line_per_piece: bool = False
) -> Iterator[Callable[..., None]]:
    """Shows a progress bar with the time left on a terminal, a plain line per minute elsewhere, nothing if not `show`.

    What the work is at before its first piece, as stages say it, stands beside it.

    Args:
        line_per_piece: off a terminal, a line after every piece as well: for pieces that say something, as epochs do.

    Yields:
        advance(n=1, note=""): to be called after each n finished pieces.
    """
    if not show:
        yield lambda n=1, note="": None
        return
    _shown.append(title)
    try:
        with _shown_progress(title, total, line_per_piece) as advance:
            yield advance
    finally:
        _shown.pop()


@contextmanager
def lines_of_command(command: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Says a line per minute of a command that shows no other progress: what it is at, and for how long by now."""
    variable = os.environ.get("MEDATTACK_PROGRESS", "").strip().lower()
    if command in OTHERS or not options.get("progress", variable not in ("0", "false", "f", "no", "n", "off")):
        yield
        return
    with _ticking(_Lines(command, 0, line_per_piece=False), lambda: not _shown):
        yield


@contextmanager
def _shown_progress(title: str, total: int, line_per_piece: bool) -> Iterator[Callable[..., None]]:
    from medseg_attack.storage.stages import listening

    console = err()
    if console.is_terminal and os.environ.get("TERM") != "dumb":
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")
            with listening(lambda stage: bar.update(task, note=visible(stage))):
                yield lambda n=1, note="": bar.update(task, advance=n, note=visible(note))
    else:
        lines = _Lines(title, total, line_per_piece)
        with _ticking(lines):
            yield lines.advance


@contextmanager
def _ticking(lines: "_Lines", is_due: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Lets a line be said where it is due and nothing was said for a minute, and the lines hear of stages."""
    from medseg_attack.storage.stages import listening

    ended = threading.Event()

    def tick() -> None:
        wait = MINUTE
        while not ended.wait(wait):
            wait = lines.said + MINUTE - time.monotonic()
            if wait <= 0:
                wait = MINUTE
                if is_due():
                    lines.say()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        with listening(lines.begin):
            yield
    finally:
        ended.set()
        clock.join()


class _Lines:
    """Progress as plain lines: a log of a long piece shows that it is still at work. Without pieces, `total` is 0."""

    def __init__(self, title: str, total: int, line_per_piece: bool) -> None:
        self.title, self.total, self.line_per_piece = title, total, line_per_piece
        self.done, self.note, self.start = 0, "", time.monotonic()
        self.said = self.start  # when the last line was

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, note
        if self.line_per_piece:
            self.say()
            self.note = ""  # what a piece says is said once

    def begin(self, stage: str) -> None:
        """Keeps the name of a stage for the next line."""
        self.note = stage

    def say(self) -> None:
        self.said = time.monotonic()
        seconds = self.said - self.start
        rest = seconds / max(self.done, 1) * (self.total - self.done)
        left = f"{duration(rest)} left" if self.done else f"after {duration(seconds)}"
        pieces = f"{self.done}/{self.total}, " if self.total else ""
        say(f"{self.title}: {pieces}{left} {self.note}".rstrip())
