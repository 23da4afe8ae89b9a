"""The two consoles of all commands, which take strings for text and break lines where a reader would."""

import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from medseg_attack.escaping import visible

WIDTH = 100  # columns of what is not printed on a terminal
_WORD = re.compile(r"\S+")
_PIECE = re.compile(r"[^(,_=/-]+[(,_=/-]*|[(,_=/-]+")


class PlainConsole(Console):
    """A console that takes strings for text: no markup, no names of emoji, no escape sequences but its own."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as text; only the lines of this package's own are kept apart."""
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of rich, but a word that is longer than its line ends at punctuation wherever it can."""
        options = options or self.options
        if isinstance(renderable, str):
            renderable = self.render_str(renderable)
        if isinstance(renderable, Text) and not (options.no_wrap or renderable.no_wrap):
            renderable = _broken_at_punctuation(renderable, options.max_width)
        return super().render(renderable, options)

    def on_broken_pipe(self) -> None:
        """The reader may go away, which rich takes for a failed check (exit code 1)."""
        raise BrokenPipeError


def _broken_at_punctuation(text: Text, width: int) -> Text:
    """The text with line breaks in words that are wider than a line, as few as it takes, each after punctuation."""
    breaks = []
    for word in _WORD.finditer(text.plain):
        if cell_len(word[0]) <= width:
            continue
        start = word.start()
        for piece in _PIECE.finditer(text.plain, *word.span()):
            if piece.start() > start and cell_len(text.plain[start : piece.end()]) > width:
                start = piece.start()
                breaks.append(start)
    if not breaks:
        return text
    lines = Text("\n", justify=text.justify, overflow=text.overflow, end=text.end)
    return lines.join(text.divide(breaks))


def out() -> Console:
    """The console of results, stdout; 100 columns wide when it is not a terminal."""
    return PlainConsole()


def err() -> Console:
    """The console of everything that is not a result, stderr; 100 columns wide when it is not a terminal."""
    return PlainConsole(stderr=True)
