"""What a stolen copy is worth, by the number of queries, the answers that it learned from, and the defences of these.

    medattack prepare scans --format "phantom(patients=60, slices=4, side=48)" --out data
    medattack prepare scans2 --format "phantom(patients=300, slices=4, side=48, seed=1)" --out proxy
    medattack train --data data --model unet_small --lr 3e-3 --epochs 16 --out model
    python benchmarks/extraction.py --victim model --data proxy --test-data data --out OUT   # and again: it goes on
    python benchmarks/extraction.py --out OUT --report                                       # the table as Markdown

A copy adds a line to OUT/rows/*.jsonl. With `--part k/N` every N-th copy is made. Rounded probabilities and a reverse
sigmoid are each met by a thief who takes them as they are, and by one who keeps the decision alone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from parts import add, part, rows

from medseg_attack.report.sheet import Sheet, between, markdown, number

QUERIES = (50, 200, 1000)
ANSWERS = {  # name of the row: options
    "masks": ("--answers", "masks"),
    "probabilities": (),
    "probabilities, 1 digit (non_adaptive)": ("--digits", "1"),
    "probabilities, 1 digit, hardened": ("--digits", "1", "--hardened"),
    "probabilities, poisoned (non_adaptive)": ("--poisoning", "0.7"),
    "probabilities, poisoned, hardened": ("--poisoning", "0.7", "--hardened"),
}
DEFENDED = 200  # queries with which defences are met
MEASURES = ("fidelity", "student", "transferred")


def lines() -> list[tuple[str, int]]:
    """The rows of the table: answers and queries."""
    plain = [(answers, n) for n in QUERIES for answers in ("masks", "probabilities")]
    return plain + [(answers, DEFENDED) for answers in ANSWERS if answers not in ("masks", "probabilities")]


def stolen(options: argparse.Namespace, answers: str, queries: int) -> dict[str, Any]:
    """The measures of a copy, as `medattack extract` prints them, and the minutes that it took."""
    start = time.monotonic()
    folder = options.out / "".join(c if c.isalnum() else "_" for c in f"{answers} {queries}")
    words = ["extract", "--victim", options.victim, "--data", options.data, "--test-data", options.test_data]
    words += ["--queries", queries, *ANSWERS[answers], "--steps", options.steps, "--out", folder]
    line = [sys.executable, "-m", "medseg_attack", *map(str, words), "--json", "--no-progress"]
    measured: dict[str, Any] = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return measured | {"answers": answers, "n": queries, "minutes": (time.monotonic() - start) / 60}


def report(out: Path) -> None:
    by_line = {(row["answers"], row["n"]): row for row in rows(out)}
    copies = [by_line[line] for line in lines() if line in by_line]
    if not copies:
        raise SystemExit(f"expected finished copies in {out}, got none; run it with --victim, --data and --test-data")
    heads = ["answers", "queries", "fidelity", "95 % CI", "copy with truth", "victim, attacked for the copy"]
    cells = [
        [
            row["answers"],
            str(row["n"]),
            number(row["fidelity"]),
            between(row["fidelity_low"], row["fidelity_high"]),
            *(f"{number(row[name])} ({between(row[f'{name}_low'], row[f'{name}_high'])})" for name in MEASURES[1:]),
            number(row["transfer"], 2),
            number(row["minutes"], 1),
        ]
        for row in copies
    ]
    first = copies[0]
    caption = (
        f"Dice of {first['patients']} test patients. The victim's is {number(first['victim'])}, and "
        f"{number(first['own'])} on images that PGD makes for itself. "
        "non_adaptive: the thief takes answers as they are."
    )
    print(markdown(Sheet("Copies", [*heads, "transfer ratio", "minutes"], cells, caption, left=1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", type=Path)
    parser.add_argument("--data", type=Path, help="prepared data of other patients, the proxy")
    parser.add_argument("--test-data", type=Path, help="prepared data that the victim learned from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="of each copy's training")
    parser.add_argument("--part", default="0/1", help="k/N: every N-th copy, from the k-th on")
    parser.add_argument("--report", action="store_true", help="print the table and do nothing else")
    options = parser.parse_args()
    if options.report:
        report(options.out)
        return
    if None in (options.victim, options.data, options.test_data):
        parser.error("expected --victim, --data and --test-data, or --report")
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    done = {(row["answers"], row["n"]) for row in rows(options.out)}
    for answers, queries in lines()[part(options.part)]:
        if (answers, queries) not in done:
            row = stolen(options, answers, queries)
            add(row, options.out / "rows" / f"{options.part.replace('/', '-of-')}.jsonl")
            print(f"{answers}, {queries}: {row['minutes']:.1f} minutes", file=sys.stderr, flush=True)
    report(options.out)


if __name__ == "__main__":
    main()
