"""Behaviour that all commands share: results on stdout, all else on stderr, errors as a sentence."""

import functools
import inspect
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer
from rich.padding import Padding
from rich.text import Text

from medseg_attack import escaping
from medseg_attack.cli.consoles import WIDTH, err, out
from medseg_attack.errors import FULL, InputError, is_out_of_memory, one_line, raised, reason
from medseg_attack.escaping import visible

if TYPE_CHECKING:
    from medseg_attack.checks.flags import Finding
    from medseg_attack.report.sheet import Sheet

P = ParamSpec("P")

_with_home: set[str] = set()  # commands that take --home
_typed_home: ContextVar[Path | None] = ContextVar("home", default=None)

FAILED, BAD_INPUT, INTERRUPTED, UNREAD = 1, 2, 130, 141
# options that something is written to, and the commands that write data sets
_WRITTEN = ("home", "out", "file", "csv", "html", "plot", "junit", "badge")
_MAKE_DATA = ("prepare", "poison")


def say(*lines: str) -> None:
    """Prints lines on stderr. The first is a sentence, which wraps between words; the others stay whole."""
    console = err()
    for line in [*escaping.wrap(visible(lines[0]), console.width), *map(visible, lines[1:])]:
        console.print(line, soft_wrap=True)


def show(*lines: str) -> None:
    """Prints lines on stdout, which wrap nowhere."""
    for line in lines:
        out().print(visible(line), soft_wrap=True)


def conclude(*sentences: str) -> None:
    """Prints sentences on stdout, each on lines of its own, which wrap between words."""
    console = out()
    for sentence in sentences:
        for line in escaping.wrap(visible(sentence), console.width):
            console.print(line)


def next_step(words: list[str]) -> None:
    """Prints the `medattack` command that most users type after this one, in the workspace of this one."""
    home = _typed_home.get() if words[0] in _with_home else None
    print_next(shell([*words, *(["--home", str(home)] if home else [])]))


def print_next(command: str) -> None:
    """Prints a command line, quoted for a shell, as the next one to type."""
    err().print(visible(f"Next: {command}"), soft_wrap=True)


def print_flags(
    findings: "Sequence[Finding]", none: str = "No flag was raised; that does not prove robustness."
) -> None:
    """Prints what is doubtful about the numbers above on stdout; docs/flags.md explains the codes."""
    if findings:
        _print_lines([finding.sentence for finding in findings])
    else:
        out().print(f"{none}\n")


def print_sheet(sheet: "Sheet") -> None:
    """Prints a table with the flags of its numbers on stdout."""
    from medseg_attack.report.sheet import rich_table

    console = out()
    console.print(rich_table(sheet, min(console.width, WIDTH)))
    if sheet.flags:
        _print_lines(sheet.flags)


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        out().print(Padding("\n".join(escaping.wrap(visible(line), out().width - 2)), (0, 0, 0, 2)))
    print()


def print_json(content: Any) -> None:
    """Prints JSON and nothing else on stdout; NaN and infinity become null."""
    from medseg_attack.storage.json_files import plain

    print(json.dumps(plain(content), indent=2, allow_nan=False))


def command(body: Callable[P, None]) -> Callable[P, None]:
    """The command with its errors reported: bad input in a sentence (exit code 2), an interruption with a remedy (130).

    A parameter `home` or `out` is a folder: another kind of thing is refused before any work.

    Any other exception is a defect of this package and is reported as such, with its traceback. Its exit code is 2,
    because 1 means that a check failed.
    """
    if "home" in inspect.signature(body).parameters:
        _with_home.add(body.__name__)

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from medseg_attack.cli.progress import lines_of_command
        from medseg_attack.registry.foreign import foreign_errors_named  # help needs none of it

        try:
            with foreign_errors_named(), lines_of_command(body.__name__, kwargs):
                _begin(body.__name__, kwargs)
                body(*args, **kwargs)
                _flush()
        except InputError as error:
            _print_error(*map(str, error.args))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            say(f"interrupted: {_after_interruption()}:", f"  {shell(sys.argv[1:])}")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            raise typer.Exit(UNREAD) from None
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and error.errno is not None:
                _print_error(refusal(error))
                raise typer.Exit(BAD_INPUT) from None
            if (sentence := _sentence(error)) is not None:
                _print_error(sentence)
                raise typer.Exit(BAD_INPUT) from None
            err().print(traceback.format_exc(), soft_wrap=True)
            say(
                f"error: this is a defect of medattack, not of what it was given ({type(error).__name__}); report it "
                "with the lines above and the command:",
                f"  {shell(sys.argv[1:])}",
            )
            raise typer.Exit(BAD_INPUT) from None

    return run


def _after_interruption() -> str:
    """A remedy for an interruption: whether anything is kept, and how to go on."""
    from medseg_attack.storage.files import has_written

    if has_written():
        return "what was finished is kept; go on with the same command"
    return "nothing was written; begin again with the same command"


def _begin(command: str, options: Mapping[str, Any]) -> None:
    """Begins a command: an interruption is to raise, a folder of an option to be one, or new, and what is written to
    lie outside of prepared data.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for option in ("home", "out"):
        if isinstance(folder := options.get(option), Path):
            require_folder(folder, f"--{option}")
    for path in (options.get(option) for option in _WRITTEN):
        if isinstance(path, Path):
            _require_outside_prepared(path, is_data=command in _MAKE_DATA and path == options.get("out"))
    home = options.get("home")  # one that the environment names holds for the next command, too
    _typed_home.set(home if home and str(home) != os.environ.get("MEDATTACK_HOME") else None)


def _require_outside_prepared(path: Path, *, is_data: bool) -> None:
    """Refuses to write among the files of a prepared data set; `is_data`: the path may be that of a data set."""
    from medseg_attack.storage.paths import prepared_around, real_path

    folder = prepared_around(path)
    if folder is not None and not (is_data and folder == real_path(path)):
        raise InputError(
            f"expected a path outside of the prepared data set {folder} to write to, got {path}; name another"
        )


def require_folder(path: Path, option: str) -> None:
    """Refuses an option's folder which is a file, or below one, or a link to nothing.

    Raises:
        InputError: it is.
    """
    for each in (path, *path.parents):
        if each.is_dir():
            return
        if os.path.lexists(each):
            from medseg_attack.storage.paths import odd_kind

            raise InputError(f"{option}: expected a folder, got {odd_kind(each) or 'the file'} {each}; name another")


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


def _sentence(error: BaseException) -> str | None:
    """The sentence of an error of the machine's memory, or of a library that leaves; None of one of this package."""
    if is_out_of_memory(error):
        return (
            f"expected memory for this work, got '{one_line(error) or type(error).__name__}'; give a smaller "
            "--batch-size where there is one, or take a machine with more"
        )
    if isinstance(error, SystemExit):
        return f"expected code that comes to its end, got {raised(error)}; repair that code"
    return None


def _print_error(sentence: str, *lines: str) -> None:
    """Prints a sentence, and below it the lines that it came with."""
    console = err()
    first, *more = escaping.wrap(f"error: {visible(sentence)}", console.width)
    console.print(Text.assemble(("error:", "bold red"), first.removeprefix("error:")), soft_wrap=True)
    for line in (*more, *map(visible, lines)):
        console.print(line, soft_wrap=True)


def exit_with(app: Callable[[], None]) -> None:
    """Runs the app and exits with its code; with another one if what it printed could not be written."""
    _silence_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of few characters shows the codes of others
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


def _silence_libraries() -> None:
    """Keeps from a user what libraries tell developers, in warnings and logs; PYTHONWARNINGS=default shows warnings."""
    logging.getLogger().setLevel(logging.CRITICAL + 1)  # which loggers without a level of their own take over
    logging.getLogger("medseg_attack").setLevel(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _flush() -> None:
    """Writes what was printed, so that it is known whether that worked; there may be no stdout at all."""
    if sys.stdout is not None:
        sys.stdout.flush()


def shell(words: Sequence[str]) -> str:
    """A `medattack` command line, quoted for a shell; that of a program that registers parts of its own.

    >>> print(shell(["doctor", "--model", "own('net.py:build')"]))
    medattack doctor --model "own('net.py:build')"
    """
    from medseg_attack.registry.foreign import foreign_entries

    program = Path(sys.argv[0])
    is_own = program.suffix == ".py" and program.name != "__main__.py" and foreign_entries()
    command = ["python", str(program)] if is_own else ["medattack"]
    return " ".join(map(escaping.shell, [*command, *words]))
