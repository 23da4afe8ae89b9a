"""What is certified of an undefended, a noise-trained and a Lipschitz network, beside what an attack reaches.

    python benchmarks/certificates.py --data DATA --plain MODEL --noisy MODEL --lipschitz MODEL --denoiser FOLDER \\
        --out OUT                                                # and again: it goes on
    python benchmarks/certificates.py --out OUT --report         # the tables as Markdown

Models are folders of checkpoints, of which `--noisy` was trained with `gaussian(sigma=0.1)`, on data that say the
phases of the heart. An attack within each radius was run against the bounds of the first scan of each certificate, of
four scans where no noise is drawn.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medseg_attack.runs.folder import RunFolder

NOISE = "sigma=0.1, draws=100, alpha=0.01"
RADII = ("0.025", "0.05", "0.1")


class Trial(NamedTuple):
    """A certificate of a model.

    Attributes:
        name: of its folder of results.
        model: the option that names it.
        cases: slices, of whole scans.
        checked: scans that are attacked.
    """

    name: str
    model: str
    certificate: str
    radii: tuple[str, ...] = RADII
    cases: int = 30
    checked: int = 1


TRIALS = (
    Trial("dice-plain", "plain", f"expected_dice({NOISE})"),
    Trial("dice-noisy", "noisy", f"expected_dice({NOISE})"),
    Trial("dice-denoised", "plain", f"denoised(certificate=expected_dice({NOISE}), file='DENOISER')"),
    Trial("lip", "lipschitz", "lipschitz", ("0.01", "0.02", "0.05"), checked=4),
    Trial("volume-noisy", "noisy", f"volume({NOISE})"),
    Trial("ef-plain", "plain", f"ejection_fraction({NOISE})", cases=20),
    Trial("ef-noisy", "noisy", f"ejection_fraction({NOISE})", cases=20),
    Trial("demasked", "plain", "demasked", ("3", "6"), checked=4),
)
UNITS = {"ejection_fraction": "%", "volume": "ml"}


def run(trial: Trial, data: Path, model: Path, denoiser: Path, out: Path) -> None:
    """Certifies; what is in `out` already stays."""
    radii = [word for radius in trial.radii for word in ("--radius", radius)]
    words = ["--data", str(data), "--model", str(model), "--out", str(out / trial.name), "--no-progress", *radii]
    words += ["--certificate", trial.certificate.replace("DENOISER", str(denoiser))]
    words += ["--limit", str(trial.cases), "--check", str(trial.checked)]
    subprocess.run([sys.executable, "-m", "medseg_attack", "certify", *words], check=True, stdout=sys.stderr)


def lines(trial: Trial, folder: Path) -> Iterator[list[str]]:
    """A line of the table for each radius."""
    rows = RunFolder(folder).rows()
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    seconds = facts["seconds"] / rows["volume"].nunique()
    unit = UNITS.get(trial.certificate.partition("(")[0], "")
    for radius, of_radius in rows.groupby("radius"):
        attacked = of_radius[of_radius["checked"]]
        highest = attacked["attacked_high"].mean() if unit else None
        reached = _interval(attacked["attacked_low"].mean(), highest, unit)
        mean = of_radius[["clean", "value", "low", "high"]].mean()
        yield [
            trial.model,
            trial.certificate.partition("(")[0],
            f"{radius:g}",
            _number(mean["clean"], unit),
            _number(mean["value"], unit),
            _interval(mean["low"], mean["high"], unit),
            _interval(attacked["low"].mean(), attacked["high"].mean(), unit),
            reached if trial.name != "demasked" else "-",  # answers that a patch turns are alarms
            str(int((of_radius["refuted"] != "").sum())),
            f"{seconds:.0f}",
        ]


def _number(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if unit else f"{value:.3f}"


def _interval(low: float, high: float | None, unit: str) -> str:
    return _number(low, unit) if high is None or pd.isna(high) else f"{low:.1f}-{high:.1f} {unit}"


def report(out: Path) -> str:
    """The table of the finished certificates as Markdown: means over scans and classes."""
    head = ["network", "certificate", "radius", "plain", "certified model", "certified", "of attacked scans"]
    head += ["the attack reaches", "refuted", "s per scan"]
    finished = [trial for trial in TRIALS if (out / trial.name / "run.json").is_file()]
    table = [line for trial in finished for line in lines(trial, out / trial.name)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--noisy", type=Path)
    parser.add_argument("--lipschitz", type=Path)
    parser.add_argument("--denoiser", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        for trial in TRIALS:
            run(trial, args.data, vars(args)[trial.model], args.denoiser, args.out)
    print(report(args.out))


if __name__ == "__main__":
    main()
