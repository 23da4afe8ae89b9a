"""Damaged files of every kind that medattack reads: `python tests/fuzz.py N [--seed S]`, or `make fuzz N=5000`.

Valid small inputs are mutated by seed and given to the command line, in this process. The only rule: exit code 0, 1 or
2, no traceback, no defect, bounded time and memory, and nothing changed outside of `--out`.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

SECONDS, BYTES = 60, 4 << 30
ODD = (None, -1, 0, 1, 1e300, float("nan"), 2**63, "", "x" * 5000, "../../x", "[/x]", "\x1b[31m", [], {}, [[[]]], True)
NAMES = ("[red].bin", "a\x1b[31m", "..x", "x" * 200, "two\nlines", "=1+1", "-rf", "half \udcff", "CON", " ")


class TooSlow(BaseException):
    """A command that ran longer than `SECONDS`; no `except Exception` holds it."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        folder: the valid input, of which one file is damaged.
        words: the command, with `{input}` and `{out}`.
    """

    name: str
    folder: Path
    words: tuple[str, ...]


def kinds(root: Path) -> list[Kind]:
    """Valid inputs of every kind, written below `root`."""
    sys.path.insert(0, str(Path(__file__).parent))
    from helpers import runs, sources

    root.mkdir()
    labels = sources.LABELS | {"folder": "a=255"}
    result = []
    for name, write in sources.WRITERS.items():
        words = ("--format", sources.SPECS[name], *(("--labels", labels[name]) if name in labels else ()))
        result.append(Kind(name, write(root / name), ("prepare", "{input}", *words, "--out", "{out}")))
    home = root / "home"
    data, model = home / "data", home / "model"
    small = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--device", "cpu"]
    _valid("prepare", root / "made", "--format", "phantom(patients=3, slices=2, side=16)", "--out", data)
    _valid("train", "--data", data, *small, "--out", model)
    study = ["attack", "--data", data, "-m", model, "--eps", "4/255", "--no-control", "--limit", "1"]
    _valid(*study, "--out", home / "run", "--save-adversarial", "all")
    runs.write_run(root / "rows", runs.dice_of(0, 4))
    again = (
        "attack",
        "--data",
        "{input}/data",
        "-m",
        "{input}/model",
        "--eps",
        "4/255",
        "--no-control",
        "--limit",
        "1",
    )
    fields = {"data": "{input}/data", "models": ["{input}/model"], "eps": ["4/255"], "limit": 1, "control": False}
    (root / "study").mkdir()
    (root / "study" / "study.yaml").write_text(yaml.safe_dump({**fields, "data": str(data), "models": [str(model)]}))
    return [
        *result,
        Kind("stored", home, (*again, "--out", "{out}")),
        Kind("doctor", home, ("doctor", "-m", "{input}/model", "--data", "{input}/data")),
        Kind("verify", home, ("verify", "{input}/run")),
        Kind("rows", root / "rows", ("compare", "{input}", "--deltas", "--csv", "{out}/t.csv", "--allow-partial")),
        Kind("study", root / "study", ("attack", "-c", "{input}/study.yaml", "--out", "{out}")),
    ]


def _valid(*words: object) -> None:
    code, output = invoke([str(word) for word in words])
    assert code == 0, output


def invoke(words: list[str]) -> tuple[int, str]:
    """Exit code and output of a command; 99 for what escaped it."""
    from medseg_attack.cli import app

    result = CliRunner().invoke(app, words, env={"MEDATTACK_PROGRESS": "0"})
    output = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 99, output + "".join(traceback.format_exception(result.exception))
    return result.exit_code, output


def damage(folder: Path, rng: random.Random) -> str:
    """Damages one file below `folder`; says how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = rng.choice(files)
    ways = [flip, flip, truncate, extend, blank, swap, rename, replace_by_odd, remove]
    if file.suffix in (".json", ".yaml"):
        ways = [edit_field] * 6 + ways
    if file.suffix == ".gz":
        ways = [flip_inside] * 3 + ways
    way = rng.choice(ways)
    way(file, files, rng)
    return f"{way.__name__} {file.relative_to(folder)}"


def flip(file: Path, _: list[Path], rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _n in range(rng.choice((1, 1, 2, 8))):
        if content:
            content[rng.randrange(min(len(content), rng.choice((400, 1 << 30))))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def flip_inside(file: Path, _: list[Path], rng: random.Random) -> None:
    content = bytearray(gzip.decompress(file.read_bytes()))
    for _n in range(rng.choice((1, 2, 8))):
        content[rng.randrange(min(len(content), rng.choice((352, 1 << 30))))] ^= 1 << rng.randrange(8)
    file.write_bytes(gzip.compress(bytes(content), 1))


def truncate(file: Path, _: list[Path], rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) + 1)])


def extend(file: Path, _: list[Path], rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.choice((1, 100, 5000))))


def blank(file: Path, _: list[Path], rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content) + 1)
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    file.write_bytes(bytes(content))


def swap(file: Path, files: list[Path], rng: random.Random) -> None:
    file.write_bytes(rng.choice(files).read_bytes())


def rename(file: Path, _: list[Path], rng: random.Random) -> None:
    name = rng.choice(NAMES)
    file.rename(file.with_name(name + (file.suffix if rng.random() < 0.7 else "")))


def remove(file: Path, _: list[Path], rng: random.Random) -> None:
    file.unlink()


def replace_by_odd(file: Path, _: list[Path], rng: random.Random) -> None:
    """A folder, a link to nothing, to itself or to the world, a pipe."""
    file.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        file.mkdir()
    elif kind == 4:
        os.mkfifo(file)
    else:
        file.symlink_to(("/nowhere", file.name, "/etc/hostname")[kind - 1])


def edit_field(file: Path, _: list[Path], rng: random.Random) -> None:
    read, write = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = read(file.read_text())
    places = list(_places(content))
    if places:
        holder, key = rng.choice(places)
        value = rng.choice(ODD)
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = value
    file.write_text(write(content))


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def state(folder: Path, out: Path) -> str:
    """A digest of all that lies below `folder`, `out` and the seal that `verify` sets aside."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path != out and out not in path.parents and path.name != "verified.json":
            is_plain = path.is_file() and not path.is_symlink()
            lines.append(f"{path!r} {hashlib.sha256(path.read_bytes()).hexdigest() if is_plain else 'no file'}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tried(kind: Kind, seed: int, root: Path) -> str:
    """The problem that an input shows; "" for none."""
    rng = random.Random(seed)
    sandbox = root / "sandbox"
    shutil.rmtree(sandbox, ignore_errors=True)
    shutil.copytree(kind.folder, sandbox / "input", symlinks=True)
    out = sandbox / "out"
    if kind.name == "rows":
        out.mkdir()
    how = damage(sandbox / "input", rng)
    words = [word.format(input=sandbox / "input", out=out) if "{" in word else word for word in kind.words]
    before = state(sandbox, out)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        code, output = invoke(words)
    except TooSlow:
        return f"{kind.name} {seed} ({how}): longer than {SECONDS} s"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    problem = ""
    if code not in (0, 1, 2) or "Traceback" in output or "defect of medattack" in output:
        problem = f"exit code {code}: {' | '.join(output.strip().splitlines()[-8:])}"
    elif state(sandbox, out) != before:
        problem = "changed something outside of --out"
    return problem and f"{kind.name} {seed} ({how}): {problem}"


def main(n: int, seed: int) -> int:
    """Tries `n` inputs from that seed on; the number of problems."""

    def stop(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["MEDATTACK_HOME"] = str(root / "workspace")
    problems = 0
    try:
        every = kinds(root / "valid")
        for kind in every:
            words = [word.format(input=kind.folder, out=root / "check") if "{" in word else word for word in kind.words]
            shutil.rmtree(root / "check", ignore_errors=True)
            (root / "check").mkdir()
            code, output = invoke(words)
            assert code in (0, 1), f"{kind.name} is not valid: {output}"
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))
        for i in range(seed, seed + n):
            problem = tried(every[i % len(every)], i, root)
            if problem:
                problems += 1
                print(problem, flush=True)
        print(f"{n} inputs, {problems} problems")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.n, arguments.seed) > 0)
