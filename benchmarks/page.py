"""How large a page of many runs is, and how long it takes to make: made-up Dice, written as runs are.

python benchmarks/page.py --models 4 --attacks 10 --budgets 5 --patients 100
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg_attack.checks.stored import records_of_stored
from medseg_attack.report.page.content import tables
from medseg_attack.report.page.method import studies
from medseg_attack.report.page.rendering import Report, write_page
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.rows import ROWS_VERSION, Row

ORGANS = ("liver", "spleen", "left kidney", "right kidney")
PIXELS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 4), ("attacks", 10), ("budgets", 5), ("patients", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="folder of the page; by default it is thrown away")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cells = itertools.product(range(args.models), range(args.attacks), range(args.budgets))
        for number, (model, attack, budget) in enumerate(cells):
            write_run(root / f"model{model}-000000" / f"{number:03d}", model, attack, budget, args.patients)
        start, cpu = time.perf_counter(), time.process_time()
        rows = read_runs([root])
        runs = [Path(run) for run in rows["run"].unique()]
        read = time.perf_counter()
        content = tables(rows, unit="volume", empty="one")
        counted = time.perf_counter()
        file = (args.out or root / "page") / "index.html"
        flags, methods = records_of_stored(runs, "volume"), list(studies({run: run.name for run in runs}, root))
        write_page(Report(content, flags, methods), file)
        end = time.perf_counter()
        cpu = time.process_time() - cpu  # what it would take on a machine with nothing else to do
        size = file.stat().st_size / 1e6
        print(f"{len(runs)} runs of {args.patients} patients: {size:.1f} MB, {end - start:.1f} s ({cpu:.1f} s of CPU)")
        print(f"reading {read - start:.1f} s, scores {counted - read:.1f} s, page {end - counted:.1f} s")


def write_run(folder: Path, model: int, attack: int, budget: int, patients: int) -> None:
    """A run whose Dice falls with the budget, for some attacks and patients faster."""
    random = np.random.default_rng((model, attack, budget))
    eps = 2**budget / 255
    dice = np.clip(random.normal(0.9 - 0.02 * model - (2 + attack) * eps, 0.08, (patients, len(ORGANS))), 0, 1)
    settings = {"rows_version": ROWS_VERSION, "data": "d" * 64, "cases": "c" * 64, "weights": str(model) * 64}
    settings |= {"attack": f"attack{attack}(linf({eps}))", "metrics": [], "seed": 0}
    run = RunFolder.open(folder, settings)
    rows = [
        Row(
            case=f"patient{patient:03d}",
            volume=f"patient{patient:03d}",
            group=f"patient{patient:03d}",
            cls=ORGANS[organ],
            n_target=PIXELS,
            n_clean=PIXELS,
            hit_clean=round(0.9 * PIXELS),
            n_adv=PIXELS,
            hit_adv=round(value * PIXELS),
            size=eps,
            linf=eps,
            forwards=2,
            backwards=1,
            n_target_adv=PIXELS,
            z_mm=5.0,
            y_mm=1.0,
            x_mm=1.0,
        )
        for (patient, organ), value in np.ndenumerate(dice)
    ]
    run.write(0, rows, 1.0, batch_size=16)
    facts = {"model": f"model{model}", "attack": f"attack{attack}", "eps": eps, "ball": f"linf(eps={eps})"}
    run.finish({**facts, "role": "attack", "loss": "bce", "data": "made up", "split": "test", "cases": patients})


if __name__ == "__main__":
    main()
