"""A bar with the time left on a terminal, and lines of a log elsewhere."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medseg_attack.cli.consoles import err
from medseg_attack.cli.terminal import say
from medseg_attack.errors import duration
from medseg_attack.escaping import visible

MINUTE = 60.0  # seconds between two lines off a terminal


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
    from medseg_attack.storage.stages import listening

    console = err()
    if not show:
        yield lambda n=1, note="": None
    elif console.is_terminal and os.environ.get("TERM") != "dumb":
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
        ended = threading.Event()
        clock = threading.Thread(target=lines.tick, args=(ended,), daemon=True)
        clock.start()
        try:
            with listening(lines.begin):
                yield lines.advance
        finally:
            ended.set()
            clock.join()


class _Lines:
    """Progress as plain lines: a log of a long piece shows that it is still at work."""

    def __init__(self, title: str, total: int, line_per_piece: bool) -> None:
        self.title, self.total, self.line_per_piece = title, total, line_per_piece
        self.done, self.note, self.start = 0, "", time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, note
        if self.line_per_piece:
            self._say()

    def begin(self, stage: str) -> None:
        """Keeps the name of a stage for the next line."""
        self.note = stage

    def tick(self, ended: threading.Event) -> None:
        """Says a line every minute until the work has ended."""
        while not ended.wait(MINUTE):
            self._say()

    def _say(self) -> None:
        seconds = time.monotonic() - self.start
        rest = seconds / max(self.done, 1) * (self.total - self.done)
        left = f"{duration(rest)} left" if self.done else f"after {duration(seconds)}"
        say(f"{self.title}: {self.done}/{self.total}, {left} {self.note}".rstrip())
