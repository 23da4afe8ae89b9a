"""Changes the code of the numeric core in one place at a time and asks the tests: `make mutate`, in minutes.

A mutant is a file with one operator, number, condition or call changed. The tests that ran the changed line in a first
pass are run again on it. A mutant that they let pass survives: it has no test, or it changes nothing.

Neither of the usual programs serves here. mutmut leaves out functions that have a decorator, and here these are all
registered parts and all properties. cosmic-ray starts a process for each mutant, which would import torch each
time. Here, processes are forked from one that has loaded the libraries, and none of this package.
"""

import argparse
import ast
import gc
import importlib
import inspect
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CORE = ("threat", "attacks", "evaluation", "certificates", "detectors", "stats", "gate", "metrics", "numerics")
CONTRACTS = ("test_closed_form.py", "test_optima.py", "test_held.py", "test_contracts.py", "test_strength.py")
HELD_BY = {  # tests beside those of its own folder, by folder of the code
    "numerics": ("attacks/test_moving_anatomy.py", "evaluation/test_rounding.py"),
    "stats": ("metrics/test_surface.py", "report/test_tables.py"),
    "threat": ("test_closed_form.py", "attacks/test_medis.py", "registry/test_settings.py"),
    "certificates": ("evaluation/test_certifying.py", "registry/test_settings.py"),
    "detectors": ("cli/test_detect.py", "evaluation/detection", "registry/test_settings.py"),
    "attacks": (*CONTRACTS, "registry/test_bad_values.py", "registry/test_settings.py", "threat/test_balls.py"),
    "evaluation": (
        "attacks/test_strongest.py",
        "certificates/test_certificates.py",
        "checks/test_attack_profile.py",
        "cli/test_attack_refusals.py",
        "cli/test_detect.py",
        "cli/test_evaluate.py",
        "cli/test_prompts_cli.py",
        "cli/test_suspect.py",
        "detectors/test_detector_files.py",
        "library/test_own_parts.py",
        "models/test_prompts.py",
        "numerics/test_slabs.py",
        "report/test_page_pictures.py",
        "report/test_reader_study.py",
        "runs/test_study.py",
        "training/test_extraction.py",
        "training/test_extraction_of_scans.py",
    ),
}
SETTINGS = "tests/registry/test_settings.py"  # reads the defaults of all files, and runs none of their lines
LIBRARIES = "torch monai.losses segmentation_models_pytorch pandas pyarrow.parquet scipy.ndimage scipy.stats sklearn"
TOOLS = "hypothesis beartype jaxtyping typer.testing pydantic yaml nibabel pydicom rich.table matplotlib"
# A mutant may take so many seconds of a core, and so many times what its tests took at first; a process that waits for
# something may do so for longer, as others may use the same cores.
SLACK, PATIENCE, WAITING = 60, 5, 10

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
RENAMED = {"min": "max", "amin": "amax", "minimum": "maximum", "any": "all", "floor": "ceil", "argmin": "argmax"}
RENAMED |= {new: old for old, new in RENAMED.items()}


@dataclass(frozen=True)
class Mutant:
    """A change of one expression of a file.

    Attributes:
        file: below the root of the project.
        line: where the expression begins.
        last: where it ends.
        text: the expression before and after.
        number: how many mutants of the file have the same text and come before.
        source: the whole file after the change.
    """

    file: str
    line: int
    last: int
    text: str
    number: int
    source: bytes

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from others, also when lines above it change."""
        return self.file, self.text, self.number

    @property
    def as_survivor(self) -> str:
        """A line of what is printed."""
        return f"survived {self.file}:{self.line}: {self.text}\n"


def mutants(file: Path) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its text."""
    content = file.read_bytes()
    starts = [0]
    for line in content.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    counts: Counter[str] = Counter()
    for node in _code(ast.parse(content)):
        begin, end = (starts[row - 1] + column for row, column in _place(node))
        old = content[begin:end].decode()
        for new in _changes(node):
            name = file.relative_to(ROOT).as_posix()
            text = " ".join(f"{old} -> {new}".split())
            source = content[:begin] + _as_long(new, old).encode() + content[end:]
            yield Mutant(name, node.lineno, node.end_lineno or node.lineno, text, counts[text], source)
            counts[text] += 1


def _place(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _code(node: ast.AST) -> Iterator[Any]:
    """The expressions that compute something: no annotation, decorator, refusal, text, import or `strict`."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue  # of a zip: it refuses lists of two lengths, and changes no result
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr | ast.Assert):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.expr | ast.AugAssign | ast.Expr):
                yield child
            yield from _code(child)


def _changes(node: ast.AST) -> Iterator[str]:
    """The texts that may stand in the place of a node."""
    yield from _other_operators(node)
    yield from _other_values(node)


def _other_operators(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=right):
            for n, op in enumerate(ops):
                changed = [*ops[:n], SWAPPED[type(op)](), *ops[n + 1 :]]
                yield _in_brackets(ast.Compare(left, changed, right))  # type: ignore[arg-type]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPPED:
            yield _in_brackets(ast.BinOp(left, SWAPPED[type(op)](), right))  # type: ignore[arg-type]
        case ast.BoolOp(op=op, values=values):
            yield _in_brackets(ast.BoolOp(SWAPPED[type(op)](), values))  # type: ignore[arg-type]
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in SWAPPED:
            yield ast.unparse(ast.AugAssign(target, SWAPPED[type(op)](), value))  # type: ignore[arg-type]
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            yield _in_brackets(operand)


def _other_values(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
        case ast.Constant(value=float(value)):
            yield str(2 * value or 1.0)
        case ast.IfExp(test=ast.Name() | ast.Call() | ast.Attribute() as test, body=body, orelse=orelse):
            yield _in_brackets(ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse))
        case ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in RENAMED:
            yield ast.unparse(ast.Call(ast.Name(RENAMED[name]), args, keywords))
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=args, keywords=keywords) if name in RENAMED:
            yield ast.unparse(ast.Call(ast.Attribute(owner, RENAMED[name]), args, keywords))


def _as_long(new: str, old: str) -> str:
    """The new text on as many lines as the old one, so that all code below keeps its place."""
    lines = "\n" * (old.count("\n") - new.count("\n"))
    return f"{new[:-1]}{lines})" if new.endswith(")") else new + lines


def _in_brackets(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


@dataclass
class Chosen:
    """A plugin of pytest that runs some tests alone, the fastest first.

    Attributes:
        seconds: what each of them took; None: all are run.
    """

    seconds: dict[str, float] | None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.seconds is not None:
            known = [item for item in items if item.nodeid in self.seconds]
            items[:] = sorted(known, key=lambda item: self.seconds[item.nodeid])  # type: ignore[index]


class Tracing:
    """A plugin of pytest that notes which lines of the core each test ran, and how long it took.

    Attributes:
        longest: a test that takes more seconds is ended and left out; 0: none is.
    """

    def __init__(self, files: Sequence[str], longest: float) -> None:
        from coverage import Coverage

        self.coverage = Coverage(data_file=None, include=files, config_file=False)
        self.longest = longest
        self.seconds: dict[str, float] = {}
        self.passed: set[str] = set()

    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        begin = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - begin
        self.coverage.switch_context("")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        signal.signal(signal.SIGPROF, self._end)
        signal.setitimer(signal.ITIMER_PROF, self.longest)
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Ends the test, or waits for the end of an import: no later test would get the rest of the module."""
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                signal.setitimer(signal.ITIMER_PROF, 0.05)
                return
            frame = frame.f_back
        pytest.skip(f"it takes more than {self.longest} s")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """The tests of each line of each file; lines that an import runs have none."""
        self.coverage.stop()
        data = self.coverage.get_data()
        result = {}
        for file in data.measured_files():
            contexts = data.contexts_by_lineno(file)
            tests = {line: sorted(set(ids) & self.passed) for line, ids in contexts.items()}
            result[Path(file).relative_to(ROOT).as_posix()] = tests
        return result


def tests_of(file: str) -> list[str]:
    """The folders and files of the tests that a file is held by, beside the examples in its own text."""
    folder = Path(file).parts[1]
    return [f"tests/{name}" for name in (folder, *HELD_BY.get(folder, ()))]


def run_tests(paths: Iterable[str], *plugins: object, stop: bool = True) -> int:
    # pytest would read and compile the file itself whose examples are asked, to rewrite its assertions
    # a test that is ended early leaves files open, which would be held against a later one
    ending = ["-x"] if stop else ["-p", "no:unraisableexception"]
    words = ["-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain", *ending, *paths]
    return int(pytest.main(words, plugins=list(plugins)))


def fork(work: Any, log: Path, limit: int = resource.RLIM_INFINITY) -> int:
    """The id of a process, the first of its own group, that does `work` and exits with the code that it returns.

    It is killed once it has used a core for `limit` seconds.
    """
    if pid := os.fork():
        return pid
    code = BROKEN
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = work()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def trace(
    paths: list[str], files: Sequence[str], longest: float, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """The tests of each line, and the seconds that each test takes."""
    record = folder / "trace.json"

    def work() -> int:
        tracing = Tracing([str(ROOT / file) for file in files], longest)
        code = run_tests(paths, tracing, stop=False)
        seconds = {name: tracing.seconds[name] for name in sorted(tracing.passed)}
        record.write_text(json.dumps([tracing.lines(), seconds]))
        return code

    _, status = os.waitpid(fork(work, folder / "trace.log"), 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(
            f"expected tests that pass before anything is changed, got\n{(folder / 'trace.log').read_text()}"
        )
    lines, seconds = json.loads(record.read_text())
    return {file: {int(n): ids for n, ids in of.items()} for file, of in lines.items()}, seconds


def load_instead(mutant: Mutant) -> None:
    """From now on, an import of the mutant's file loads the mutant."""
    path, read = str(ROOT / mutant.file), SourceFileLoader.get_data

    def get_data(self: SourceFileLoader, wanted: str) -> bytes:
        if wanted == path:
            return mutant.source
        if wanted.endswith(".pyc") and self.path == path:
            raise OSError("the compiled file is of the code before the change")
        return read(self, wanted)

    sys.dont_write_bytecode = True
    SourceFileLoader.get_data = get_data  # type: ignore[method-assign]


class InPlace:
    """A plugin of pytest that collects tests once, and then runs those of each mutant in a process of its own.

    The code of a function is exchanged under all who have imported it. What a file does when it is imported cannot be
    exchanged; see `elsewhere`.

    Attributes:
        elsewhere: mutants, by number, whose change is not within a function.
    """

    def __init__(self, todo: Sequence[tuple[Mutant, dict[str, float]]], jobs: int, folder: Path, output: int) -> None:
        self.todo, self.jobs, self.folder, self.output = todo, jobs, folder, output
        self.elsewhere: list[int] = []
        self.survivors: list[int] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = functions_of({mutant.file for mutant, _ in self.todo})

        def work(number: int) -> int:
            mutant, seconds = self.todo[number]
            if not exchanged(mutant, functions):
                return ELSEWHERE
            chosen = [items[name] for name in sorted(seconds, key=lambda name: seconds[name]) if name in items]
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    return 1
            return 0

        for number, code in forked(work, [seconds for _, seconds in self.todo], self.jobs, self.folder):
            if code == ELSEWHERE:
                self.elsewhere.append(number)
            elif code == 0:
                self.survivors.append(number)
                os.write(self.output, self.todo[number][0].as_survivor.encode())
        return True


ELSEWHERE, BROKEN = 71, 70
Functions = dict[tuple[str, str, int], list[FunctionType]]


def functions_of(files: Iterable[str]) -> Functions:
    """The functions of files that are loaded, by file, name and first line."""
    paths = {str(ROOT / file) for file in files}
    result: Functions = {}
    gc.unfreeze()  # the tests freeze what is loaded, which would not be among the objects
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename in paths:
            code = each.__code__
            result.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(each)
    gc.freeze()
    return result


def exchanged(mutant: Mutant, functions: Functions) -> bool:
    """Puts the code of the mutant in place of that of its function; False if the change is not within a function."""
    path = str(ROOT / mutant.file)
    modules = [each for each in list(sys.modules.values()) if vars(each).get("__file__") == path]
    if not modules:  # no test that was collected has loaded it so far
        return False
    compiler = SourceFileLoader(modules[0].__name__, path)
    old, new = (compiler.source_to_code(text, path) for text in (Path(path).read_bytes(), mutant.source))
    try:
        pairs = list(_changed_functions(old, new))
        alive = [
            (function, after)
            for before, after in pairs
            for function in functions.get((path, before.co_qualname, before.co_firstlineno), ())
        ]
        for function, after in alive:
            function.__code__ = after
    except (LookupError, ValueError):  # an import runs it, or it closes over something else
        return False
    return bool(alive)


def _changed_functions(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The functions that differ, those within others after these.

    Raises:
        LookupError: code differs that an import runs.
    """
    if old == new:
        return
    parts = [[each for each in code.co_consts if isinstance(each, CodeType)] for code in (old, new)]
    others = [[each for each in code.co_consts if not isinstance(each, CodeType)] for code in (old, new)]
    if old.co_flags & inspect.CO_OPTIMIZED:
        yield old, new
        if len(parts[0]) != len(parts[1]):
            return
    elif old.co_code != new.co_code or repr(others[0]) != repr(others[1]) or old.co_names != new.co_names:
        raise LookupError
    for before, after in zip(*parts, strict=True):
        yield from _changed_functions(before, after)


def forked(work: Any, seconds: Sequence[dict[str, float]], jobs: int, folder: Path) -> Iterator[tuple[int, int]]:
    """Runs `work` for every number in a process of its own, several at a time.

    Yields:
        A number, and the code that its process ended with; -9 if it was not done in time.
    """
    waiting, running = list(range(len(seconds)))[::-1], dict[int, tuple[int, Path, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop()
            if not seconds[number]:
                yield number, 0
                continue
            log, limit = folder / f"{number}.log", SLACK + round(PATIENCE * sum(seconds[number].values()))
            running[fork(lambda n=number: work(n), log, limit)] = number, log, time.monotonic() + WAITING * limit
        pid, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
        if pid in running:
            number, log, _ = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code == BROKEN:  # no test has failed: to call the mutant killed would be wrong
                raise SystemExit(f"expected a process that runs the tests of a mutant, got\n{log.read_text()}")
            log.unlink(missing_ok=True)
            yield number, code
            continue
        for pid, (_, _, until) in running.items():
            if time.monotonic() > until:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)


def try_all(todo: Sequence[tuple[Mutant, dict[str, float]]], jobs: int, folder: Path) -> list[int]:
    """Runs the tests of every mutant; the numbers of those of which no test fails, and all of whose tests end."""
    output, record = os.dup(1), folder / "in_place.json"

    def in_place() -> int:
        plugin = InPlace(todo, jobs, folder, output)
        code = run_tests(sorted({name.partition("::")[0] for _, seconds in todo for name in seconds}), plugin)
        record.write_text(json.dumps([plugin.elsewhere, plugin.survivors]))
        return code

    log = folder / "in_place.log"
    _, status = os.waitpid(fork(in_place, log), 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"expected tests that can be collected, got\n{log.read_text()}")
    elsewhere, survivors = json.loads(record.read_text())

    def loaded_anew(n: int) -> int:
        mutant, seconds = todo[elsewhere[n]]
        load_instead(mutant)
        return run_tests(sorted({name.partition("::")[0] for name in seconds}), Chosen(seconds))

    for n, code in forked(loaded_anew, [todo[number][1] for number in elsewhere], jobs, folder):
        if code == 0:
            survivors.append(elsewhere[n])
            print(todo[elsewhere[n]][0].as_survivor, end="", flush=True)
    return sorted(survivors)


def changed_files(since: str) -> list[str]:
    """The files of the core that differ from a commit, those that nobody added yet among them."""
    words = [["diff", "--name-only", "--relative", since], ["ls-files", "--others", "--exclude-standard"]]
    names = "".join(
        subprocess.run(["git", *w], cwd=ROOT, capture_output=True, text=True, check=True).stdout for w in words
    )
    core = tuple(f"medseg_attack/{folder}/" for folder in CORE)
    return sorted({n for n in names.split() if n.startswith(core) and n.endswith(".py") and (ROOT / n).exists()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files or folders below medseg_attack; by default what has changed")
    parser.add_argument("--since", default="origin/main", help="the commit that changes are counted from")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--survivors", type=Path, help="where the survivors are written, as JSON")
    parser.add_argument("--again", type=Path, help="survivors of an earlier run, which alone are tried again")
    parser.add_argument("--tests", nargs="*", help="beside the examples in files; by default those of their folders")
    parser.add_argument("--longest", type=float, default=0, help="a test that takes more seconds is left out; 0: none")
    parser.add_argument("--seconds", type=float, default=0, help="a mutant's tests, the fastest first; 0: all of them")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [
        path for name in options.files for path in ([Path(name)] if name.endswith(".py") else Path(name).rglob("*.py"))
    ]
    files = (
        sorted(path.resolve().relative_to(ROOT).as_posix() for path in paths) if paths else changed_files(options.since)
    )
    if not files:
        print(f"no file of the core differs from {options.since}")
        return
    for library in (*LIBRARIES.split(), *TOOLS.split()):
        importlib.import_module(library)
    importlib.import_module("torch").set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = name
        _report(files, options, Path(name))


def _report(files: Sequence[str], options: argparse.Namespace, folder: Path) -> None:
    tests = options.tests or dict.fromkeys(path for file in files for path in tests_of(file))
    lines, seconds = trace([*tests, *files], files, options.longest, folder)
    todo = [mutant for file in files for mutant in mutants(ROOT / file)]
    if options.again:
        keys = {tuple(key) for key in json.loads(options.again.read_text())}
        todo = [mutant for mutant in todo if mutant.key in keys]
    if options.sample:
        todo = random.Random(options.seed).sample(todo, min(options.sample, len(todo)))
    asked = [(mutant, _fastest(_tests(mutant, lines, seconds), options.seconds)) for mutant in todo]
    survivors = {todo[n].key for n in try_all(asked, options.jobs, folder)}
    for file in files:
        of_file = [mutant.key in survivors for mutant in todo if mutant.file == file]
        if of_file:
            print(f"{file}: {of_file.count(False)} of {len(of_file)} killed")
    if options.survivors:
        options.survivors.write_text(json.dumps(sorted(survivors)))
    n_killed = len(todo) - len(survivors)
    print(f"{n_killed} of {len(todo)} mutants killed ({n_killed / max(len(todo), 1):.0%})")


def _tests(mutant: Mutant, lines: dict[str, dict[int, list[str]]], seconds: dict[str, float]) -> dict[str, float]:
    """The tests that ran a line of the mutant's expression.

    Of a line that an import runs, those that ran any of its file, those in files that import it, and those of settings;
    of a file of constants, all; of functions that no test ran, none.
    """
    of_file = lines.get(mutant.file, {})
    ids = {name for n in range(mutant.line, mutant.last + 1) for name in of_file.get(n, ())}
    if not ids:
        ids = {name for names in of_file.values() for name in names}
        constants = not any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(mutant.source)))
        if constants and not ids:
            return seconds
        module = ".".join(Path(mutant.file).with_suffix("").parts)
        files = {name.partition("::")[0] for name in seconds}
        readers = {file for file in files if _reads(file, module)}
        ids |= {name for name in seconds if name.partition("::")[0] in readers}
    return {name: seconds[name] for name in ids}


def _reads(test: str, module: str) -> bool:
    """Whether a file of tests names a module, or asks for the settings of all."""
    return test == SETTINGS or re.search(rf"\b{re.escape(module)}\b", Path(test).read_text()) is not None


def _fastest(seconds: dict[str, float], limit: float) -> dict[str, float]:
    """The fastest tests, which take no more seconds altogether; 0: all."""
    names = sorted(seconds, key=lambda name: seconds[name])
    ends = accumulate(seconds[name] for name in names)
    return {name: seconds[name] for name, end in zip(names, ends, strict=True) if not limit or end <= limit}


if __name__ == "__main__":
    main()
