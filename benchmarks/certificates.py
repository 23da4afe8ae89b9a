"""What is certified of an undefended, a noise-trained and a Lipschitz network, beside what an attack reaches.

    python benchmarks/certificates.py --data DATA --plain MODEL --noisy MODEL --lipschitz MODEL --denoiser FOLDER \\
        --out OUT                                                # and again: it goes on
    for k in 0 1 2 3; do python benchmarks/certificates.py ... --draws 1000 --part $k/4 --device cuda & done
    python benchmarks/certificates.py --out OUT --report         # the tables as Markdown

Models are folders of checkpoints, of which `--noisy` was trained with `gaussian(sigma=0.1)`, on data that say the
phases of the heart. Without a model its certificates are left out. An attack within each radius was run against the
bounds of the first scan of each certificate, of four scans where no noise is drawn. With `--part k/N` every N-th scan
of each certificate is done, so that several processes share the work; the report is of the scans that are there.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medseg_attack.runs.folder import RunFolder

NOISE = "sigma=0.1, draws={draws}, alpha=0.01"
EXPECTED = f"expected_dice({NOISE})"
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
    Trial("dice-plain", "plain", EXPECTED),
    Trial("dice-noisy", "noisy", EXPECTED),
    Trial("dice-denoised", "plain", f"denoised(certificate={EXPECTED}, file='DENOISER')"),
    Trial("lip", "lipschitz", "lipschitz", ("0.01", "0.02", "0.05"), checked=4),
    Trial("volume-plain", "plain", f"volume({NOISE})"),
    Trial("volume-noisy", "noisy", f"volume({NOISE})"),
    Trial("ef-plain", "plain", f"ejection_fraction({NOISE})", cases=20),
    Trial("ef-noisy", "noisy", f"ejection_fraction({NOISE})", cases=20),
    Trial("pixels-noisy", "noisy", f"segcertify({NOISE})", ("0.0674",)),
    Trial("hierarchy-noisy", "noisy", f"hierarchical({NOISE})", ("0.0674",)),
    Trial("demasked", "plain", "demasked", ("3", "6"), checked=4),
)
REFUTED = 1  # the exit code where an attack got below a bound, which the table shows
UNITS = {"ejection_fraction": "%", "volume": "ml"}


def run(trial: Trial, options: argparse.Namespace) -> bool:
    """Certifies, and says whether that could be done; what is in `out` already stays."""
    certificate = trial.certificate.replace("{draws}", str(options.draws)).replace("DENOISER", str(options.denoiser))
    words = ["--data", options.data, "--model", vars(options)[trial.model], "--out", options.out / trial.name]
    words += [word for radius in trial.radii for word in ("--radius", radius)]
    words += ["--certificate", certificate, "--limit", options.cases or trial.cases, "--check", trial.checked]
    words += ["--device", options.device, "--shard", options.part, "--no-progress"]
    command = [sys.executable, "-m", "medseg_attack", "certify", *map(str, words)]
    return subprocess.run(command, stdout=sys.stderr).returncode in (0, REFUTED)


def lines(trial: Trial, folder: Path) -> Iterator[list[str]]:
    """A line of the table for each radius."""
    rows = RunFolder(folder).rows()
    seconds = RunFolder(folder).seconds / rows["volume"].nunique()
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
            str(rows["volume"].nunique()),
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
    """The table of the certificates as Markdown: means over scans and classes."""
    head = ["network", "certificate", "radius", "scans", "plain", "certified model", "certified", "of attacked scans"]
    head += ["the attack reaches", "refuted", "s per scan"]
    begun = [trial for trial in TRIALS if any((out / trial.name / "parts").glob("*.parquet"))]
    table = [line for trial in begun for line in lines(trial, out / trial.name)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prepared data set")
    parser.add_argument("--plain", type=Path, help="network that was trained without noise")
    parser.add_argument("--noisy", type=Path, help="network that was trained with noise")
    parser.add_argument("--lipschitz", type=Path, help="Lipschitz network")
    parser.add_argument("--denoiser", type=Path, help="denoiser before the plain network")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bounds")
    parser.add_argument("--draws", type=int, default=100, help="of noise, for each scan")
    parser.add_argument("--cases", type=int, help="slices, of whole scans, instead of 20 or 30")
    parser.add_argument("--part", default="0/1", help="k/N: every N-th scan, from the k-th on")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--report", action="store_true", help="print the table and run nothing")
    options = parser.parse_args()
    refused = [
        trial.name
        for trial in (() if options.report else TRIALS)
        if vars(options)[trial.model] and (options.denoiser or "DENOISER" not in trial.certificate)
        if not run(trial, options)
    ]
    print(report(options.out))
    if refused:
        raise SystemExit(f"expected bounds of {', '.join(refused)}, got errors; see above")


if __name__ == "__main__":
    main()
