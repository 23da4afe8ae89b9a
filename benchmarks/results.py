"""Makes pages of results again, each by the commands that it shows.

    python benchmarks/results.py acdc --scans acdc=ACDC/training --out build/results      # make results NAME=acdc ...

A page in `results/` is its own recipe: the lines of its `sh` blocks run in OUT/NAME, one after the other. What the last
line of a block prints takes the place of what stands between `<!-- output -->` and `<!-- end -->` after the block, with
the commit it was made from. Called again, it goes on after the last line that was done. The text around the tables was
written by a reader of the former ones: read it again.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.S | re.M)
OUTPUT = re.compile(r"(^<!-- output -->\n).*?(^<!-- end -->$)", re.S | re.M)


def recipe(page: str) -> list[list[str]]:
    """The lines of each `sh` block, with continued lines joined."""
    return [block.replace("\\\n", " ").splitlines() for block in BLOCK.findall(page)]


def with_outputs(page: str, outputs: Sequence[str], origin: str) -> str:
    """The page with the output of each block in the first place for one after that block, if it has any."""
    starts = [match.end() for match in BLOCK.finditer(page)] + [len(page)]
    parts = [page[: starts[0]]]
    for output, (start, end) in zip(outputs, pairwise(starts), strict=True):
        text = _escaped(output.strip("\n") + f"\n\n{origin}\n")  # a first line may be indented, as code is
        parts.append(OUTPUT.sub(f"\\g<1>{text}\\g<2>", page[start:end], count=1))
    return "".join(parts)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")


def run(lines: list[list[str]], folder: Path) -> list[str]:
    """What the last line of each block prints; lines that were done before are not run again."""
    log = folder / "steps.json"
    done: list[dict[str, Any]] = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else []
    before = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    steps: list[dict[str, Any]] = []
    for line in (line for block in lines for line in block):
        number = len(steps)
        if number < len(done) and done[number]["line"] == line:
            steps.append(done[number])
            continue
        done = []  # what comes after a line that changed is done again
        print(f"{folder.name}: {line}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        process = subprocess.run(
            line, shell=True, cwd=folder, env=os.environ | before, stdout=subprocess.PIPE, text=True, check=False
        )
        if process.returncode:
            raise SystemExit(f"expected exit code 0, got {process.returncode} of: {line}")
        steps.append({"line": line, "output": process.stdout, "seconds": round(time.perf_counter() - start, 1)})
        log.write_text(json.dumps(steps, indent=1), encoding="utf-8")
    ends = [sum(map(len, lines[: k + 1])) - 1 for k in range(len(lines))]
    return [steps[end]["output"] for end in ends]


def origin() -> str:
    """The commit, the day and the versions that results are made from."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    # a page that was made before is no change of what the next one is made from
    if _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results"):
        commit += ", changed"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "segmentation-models-pytorch"))
    return f"Commit {commit}, {datetime.date.today():%d %b %Y}, Python {platform.python_version()}, {versions}."


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="pages, without .md")
    parser.add_argument("--scans", action="append", default=[], help="NAME=FOLDER: a data set by its name on the pages")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "results", help="folder to work in")
    options = parser.parse_args()
    for name in options.names:
        file, folder = HERE / "results" / f"{name}.md", options.out.resolve() / name
        if not file.is_file():
            raise SystemExit(f"expected the name of a page in {HERE / 'results'}, got {name!r}; write one of those")
        folder.mkdir(parents=True, exist_ok=True)
        for text in ("benchmarks=" + str(HERE), *options.scans):
            short, _, target = text.partition("=")
            link = folder / short
            if not link.is_symlink():
                link.symlink_to(Path(target).resolve())
        page = file.read_text(encoding="utf-8")
        file.write_text(with_outputs(page, run(recipe(page), folder), origin()), encoding="utf-8")
        print(f"{file}: made again; read the text around its tables", file=sys.stderr)


if __name__ == "__main__":
    main()
