"""Behaviour that all commands share: results on stdout, progress on stderr, errors as a sentence."""

import functools
import json
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, runtime_checkable

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medseg_attack.errors import InputError, reason
from medseg_attack.files import FULL

if TYPE_CHECKING:
    from medseg_attack.checks.flags import Finding

P = ParamSpec("P")

FAILED, BAD_INPUT, INTERRUPTED, UNREAD = 1, 2, 130, 141


class _Console(Console):
    """A console whose reader may go away, which rich takes for a failed check (exit code 1)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def out() -> Console:
    """The console of results, stdout; 100 columns wide when it is not a terminal."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=100)


def err() -> Console:
    """The console of everything that is not a result, stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints one line on stderr."""
    err().print(text, markup=False)


def next_step(command: str) -> None:
    """Prints the command that most users type after this one."""
    say(f"Next: {command}")


def print_flags(
    findings: "Sequence[Finding]", none: str = "No flag was raised; that does not prove robustness."
) -> None:
    """Prints what is doubtful about the numbers above on stdout; docs/flags.md explains the codes."""
    if not findings:
        out().print(f"{none}\n")
        return
    for finding in findings:
        flag = finding.flag
        text = f"{finding.code} {flag.verdict} - {finding.about}: {flag.title} ({finding.numbers}); {flag.todo}"
        out().print(Padding(text, (0, 0, 0, 2)), markup=False)
    print()


def print_json(content: Any) -> None:
    """Prints JSON and nothing else on stdout; NaN and infinity become null."""
    print(json.dumps(_plain(content), indent=2, allow_nan=False))


@runtime_checkable
class _Scalar(Protocol):
    """A number of numpy's or torch's."""

    def item(self) -> float: ...


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value.item() if isinstance(value, _Scalar) else value


def command(body: Callable[P, None]) -> Callable[P, None]:
    """The command with its errors reported: bad input in a sentence (exit code 2), an interruption with a remedy (130).

    Any other exception is a defect of this package and is reported as such, with its traceback. Its exit code is 2,
    because 1 means that a check failed.
    """

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.default_int_handler)
            body(*args, **kwargs)
            _flush()
        except InputError as error:
            _print_error(str(error))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            say(f"interrupted: what was finished is kept; go on with the same command:\n  {shell(sys.argv[1:])}")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            raise typer.Exit(UNREAD) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                _print_error(refusal(error))
                raise typer.Exit(BAD_INPUT) from None
            traceback.print_exc()
            say(
                f"error: this is a defect of medattack, not of what it was given ({type(error).__name__}); report it "
                f"with the lines above and the command:\n  {shell(sys.argv[1:])}"
            )
            raise typer.Exit(BAD_INPUT) from None

    return run


def refusal(error: OSError) -> str:
    """A sentence on what the system refused: too long a name, a folder that may not be entered, a full disk."""
    why = reason(error)
    if error.filename is None:
        return f"expected to be able to write the output, got '{why}'; direct it elsewhere, or make room for it"
    name = str(error.filename)
    if len(name) > 300:
        name = f"{name[:140]} ... {name[-140:]}"
    if error.errno in FULL:
        return f"expected room on the disk for {name}, got '{why}'; free some space, then run the same command again"
    return (
        f"expected to be able to read or write {name}, got '{why}'; make it and its folders accessible, or name another"
    )


def _print_error(sentence: str) -> None:
    err().print(f"[bold red]error:[/] {escaped(sentence)}")


def exit_with(app: Callable[[], None]) -> None:
    """Runs the app and exits with its code; with another one if what it printed could not be written."""
    code: int | str | None = 0
    try:
        try:
            app()
        except SystemExit as exit:
            code = exit.code
        _flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`
        code = UNREAD
    except OSError as error:
        code = BAD_INPUT
        with suppress(OSError):  # stderr may be full, too
            _print_error(refusal(error))
    if code in (UNREAD, BAD_INPUT):  # the interpreter would try once more to write, and print a traceback
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _flush() -> None:
    """Writes what was printed, so that it is known whether that worked; there may be no stdout at all."""
    if sys.stdout is not None:
        sys.stdout.flush()


def escaped(text: str) -> str:
    """The text with its brackets escaped, so that rich does not read them as markup."""
    return text.replace("[", r"\[")


def shell(words: Sequence[str]) -> str:
    """A `medattack` command line, quoted for a shell."""
    return shlex.join(["medattack", *words])


@contextmanager
def progress(title: str, total: int, *, show: bool = True) -> Iterator[Callable[..., None]]:
    """Shows a progress bar with the time left on a terminal, a plain line per minute elsewhere, nothing if not `show`.

    Yields:
        advance(n=1, note=""): to be called after each n finished pieces.
    """
    console = err()
    if not show:
        yield lambda n=1, note="": None
    elif console.is_terminal and os.environ.get("TERM") != "dumb":
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda n=1, note="": bar.update(task, advance=n, note=note)
    else:
        yield _lines(title, total)


def _lines(title: str, total: int) -> Callable[..., None]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= 60:
            last = now
            left = (now - start) / max(done, 1) * (total - done)
            say(f"{title}: {done}/{total}, {left:.0f} s left {note}".rstrip())

    return advance
