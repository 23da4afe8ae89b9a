"""Does BCE attack better than the training loss, and how much of it comes from the order of the loss's arguments?

    python benchmarks/reproduce/wang2024.py --data DATA --model MODEL [--model ...] --out RUNS

Re-tests the claim of arXiv 2401.11224 on models trained here (several seeds of one, or several): every loss in both
orders of its arguments, added and blended. Prints a Markdown table and a verdict with intervals over patients.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.report.sheet import p_value
from medseg_attack.runs.reading import read_runs
from medseg_attack.stats.patients import Difference, difference, interval, paired, warning
from medseg_attack.stats.scores import by_organ, pooled, scored

STUDY = Path(__file__).with_suffix(".yaml")
LOSSES = {"bce": "bce", "focal": "focal", "dice": "soft_dice", "dice_focal": "dice_focal"}
STEPS = {"added": "linf", "blended": "blend"}
PAPER = {"clean": 0.8024, "BCE": 0.3750}  # U-Net++/EfficientNet-B7 on UW-Madison


def cell(cases: pd.DataFrame, loss: str, swapped: bool, step: str) -> pd.DataFrame:
    """Dice under one attack, averaged over models: a row per patient's case and organ."""
    name = f"{loss}_swapped" if swapped else LOSSES[loss]
    chosen = cases[(cases["loss"] == name) & (cases["norm"] == STEPS[step]) & ~cases["control"]]
    keys = ["group", "unit", "cls"]
    return chosen.groupby(keys, sort=False)[["dice_clean", "dice_adv"]].mean().reset_index().assign(run="mean")


def read(out: Path) -> pd.DataFrame:
    rows = read_runs([out])
    facts = rows.drop_duplicates("run").set_index("run")[["loss", "ball", "role"]]
    cases = scored(pooled(rows, "volume"), "one").join(facts, on="run")
    norm, control = cases["ball"].str.partition("(")[0], cases["role"] == "control"
    return cases.assign(norm=norm, control=control)


def shown(table: pd.DataFrame) -> str:
    low, high = interval(table, "dice_adv")
    return f"{by_organ(table, 'dice_adv')['mean'].iloc[0]:.3f} [{low:.2f}, {high:.2f}]"


def stronger(first: pd.DataFrame, second: pd.DataFrame) -> Difference:
    """The Dice that the first takes beyond the second, paired over patients."""
    return difference(paired(second, first, "dice_adv"))


def verdict_line(what: str, result: Difference) -> str:
    sure = "undecided"
    if result.p < 0.05:  # interval and test must agree
        sure = "yes" if result.low > 0 else "no, the reverse" if result.high < 0 else sure
    return f"- {what}: {result.mean:+.3f} [{result.low:+.3f}, {result.high:+.3f}], p {_p(result.p)}: **{sure}**"


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def order_effect(cases: pd.DataFrame, step: str) -> Difference:
    """The swap's addition to BCE's lead over the training loss: a difference of differences."""
    lead = {}
    for swapped in (False, True):
        bce, ours = cell(cases, "bce", swapped, step), cell(cases, "dice_focal", swapped, step)
        lead[swapped] = bce.assign(lead=ours["dice_adv"].to_numpy() - bce["dice_adv"].to_numpy())
    return difference(paired(lead[True], lead[False], "lead"))


def report(cases: pd.DataFrame, models: int) -> str:
    clean = cell(cases, "bce", False, "added")
    noise = (
        cases[cases["control"]].groupby(["norm", "group", "unit", "cls"], sort=False)["dice_adv"].mean().reset_index()
    )
    of_noise = {n: by_organ(t.assign(run="r"), "dice_adv")["mean"].iloc[0] for n, t in noise.groupby("norm")}
    patients = clean["group"].nunique()
    lines = [
        f"Clean mean Dice {by_organ(clean, 'dice_clean')['mean'].iloc[0]:.3f}; noise of the same size "
        f"{of_noise['linf']:.3f} added, {of_noise['blend']:.3f} blended. "
        f"{plural(models, 'model')}, {patients} unseen patients. "
        f"The paper (U-Net++/EfficientNet-B7, UW-Madison): {PAPER['clean']:.4f} clean, {PAPER['BCE']:.4f} under BCE.",
        "",
        "| loss | right order, added | right order, blended | swapped, added | swapped, blended |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for loss in LOSSES:
        values = [shown(cell(cases, loss, swapped, step)) for swapped in (False, True) for step in STEPS]
        lines.append(f"| {loss} | " + " | ".join(values) + " |")
    lines.append("\nDoes BCE take more Dice than the training loss (dice_focal)?\n")
    for swapped, order in ((False, "right order"), (True, "swapped")):
        for step in STEPS:
            pair = cell(cases, "bce", swapped, step), cell(cases, "dice_focal", swapped, step)
            lines.append(verdict_line(f"{order}, {step}", stronger(*pair)))
    lines.append("\nDoes the swap add to BCE's lead?\n")
    lines += [verdict_line(step, order_effect(cases, step)) for step in STEPS]
    lines.append("\nDoes right-order dice_focal take more Dice than swapped BCE?\n")
    for step in STEPS:
        pair = cell(cases, "dice_focal", False, step), cell(cases, "bce", True, step)
        lines.append(verdict_line(step, stronger(*pair)))
    return "\n".join([*lines, *filter(None, ["", warning(patients)])])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--model", action="append", required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--eps", default="0.009")
    args = options.parse_args()
    models = [word for model in args.model for word in ("--model", model)]
    words = ["attack", "--config", str(STUDY), "--data", str(args.data), *models, "--eps", args.eps]
    words += ["--out", str(args.out)]
    subprocess.run([sys.executable, "-m", "medseg_attack", *words], check=True, stdout=subprocess.DEVNULL)
    print(report(read(args.out), len(args.model)))


if __name__ == "__main__":
    main()
