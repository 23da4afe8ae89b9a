"""Detectors side by side: what they notice of attacks that do not know them, and of those that do; a verdict on each.

    python benchmarks/detectors.py --data DATA --model MODEL --out OUT                       # and again: it goes on
    for k in 0 1 2 3; do python benchmarks/detectors.py ... --part $k/4 --device cuda & done  # the same, shared out
    python benchmarks/detectors.py --out OUT --report > detectors.md                         # the tables as Markdown

A run is an attack at a size; all detectors look at its images, and each adds a line to OUT/rows/*.jsonl. With
`--part k/N` every N-th run is made and looked at, so that several processes share the work. The report is of the lines
that are there.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from parts import add, part, rows

from medseg_attack import registry
from medseg_attack.detectors.base import Calibrated
from medseg_attack.evaluation.detection.evaders import evaders
from medseg_attack.evaluation.detection.scoring import Answer, Detection, control_key, per_patient
from medseg_attack.report.detectors import detector_sheet, goal_sheet, has_goals
from medseg_attack.report.sheet import Sheet, between, markdown, number, percent
from medseg_attack.runtime import pick_device
from medseg_attack.stats.alarms import alarm_table, main_rate, verdict

DETECTORS = (
    "entropy",
    "probability_margin",
    "variation_ratio",
    "feature_squeezing",
    "plausible_mask",
    "mgm",
    "rotation_consistency",
    "kernel_density",
    "lid",
    "isolation_forest",
    "one_class_svm",
    "mahalanobis",
    "dfeat",
    "qfeat",
    "linear_probe",
    "explanation",
    "noise_map",
    "any_of(detectors=(entropy, feature_squeezing, mgm))",
    "spatial_consistency(pairs=10)",
)
KNOWING = ("evading", "orthogonal")
PER_SIZE = {"vafa": "{:g}", "bias_field": "{:g}/255"}  # budgets of attacks that are not in Linf, in their own unit
FACTORS = {"vafa": 2, "bias_field": 10}
ATTACKS = (
    "pgd",
    "strongest",
    "fgsm",
    "pgd(objective=toward(bce, erase))",
    "pgd(objective=toward(bce, shrink))",
    "cospgd",
    "vafa",
    "bias_field",
)
SIZES = (4.0, 8.0, 2.0, 1.0)  # of 255; the order in which they are run
ROW = ["kind", "attack", "loss", "eps", "noise_of"]  # of the table
PATIENT = ("kind", "attack", "loss", "goal", "eps", "group", "score", "p", "p_two_sided", "dice_clean", "dice")


class Line(NamedTuple):
    """A detector before the images of one run: what identifies a line of results."""

    attack: str
    size: float
    detector: str


def budget(attack: str, size: float) -> str:
    """The size as `--eps` has it.

    A table of quantisation with steps of 2 moves no block by a root mean square of more than 1; a gain of 10/255 moves
    the brightest pixel by 10.
    """
    name = attack.partition("(")[0]
    return PER_SIZE.get(name, "{:g}/255").format(FACTORS.get(name, 1) * size)


def lines(options: argparse.Namespace) -> Iterator[tuple[tuple[str, float], list[Line]]]:
    """The lines of each run of this part."""
    runs = [(attack, size) for size in options.size or SIZES for attack in options.attack or ATTACKS]
    for attack, size in runs[part(options.part)]:
        yield (attack, size), [Line(attack, size, detector) for detector in options.detector or DETECTORS]


def run(options: argparse.Namespace) -> None:
    done = {Line(*(row[field] for field in Line._fields)) for row in rows(options.out)}
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    fitted: dict[str, Calibrated] = {}
    answers: dict[Hashable, Answer] = {}  # clean images and noise of a size are the same for all attacks
    for (attack, size), of_run in lines(options):
        todo = [line for line in of_run if line not in done]
        if not todo:
            continue
        folder = attacked(options, attack, size)
        knowing = () if attack == "fgsm" else options.knowing or KNOWING  # PGD stands in for FGSM
        opened = Detection.open(
            registry.build(todo[0].detector, "detector"),
            [folder],
            pick_device(options.device),
            evaders=evaders(knowing, options.weight or ()) if knowing else (),
            answers=answers,
        )
        for line in todo:
            detection = dataclasses.replace(opened, detector=registry.build(line.detector, "detector"))
            start = time.monotonic()
            if line.detector not in fitted:
                fitted[line.detector] = detection.fit()
            row = line._asdict() | result(detection, fitted[line.detector])
            row["seconds"] = time.monotonic() - start
            add(row, options.out / "rows" / f"{options.part.replace('/', '-of-')}.jsonl")
            print(f"{line}: {row['seconds']:.0f} s", file=sys.stderr, flush=True)


def attacked(options: argparse.Namespace, attack: str, size: float) -> Path:
    """The folder of the run with its stored images, which is made now where it is not there."""
    text = f"{attack} {budget(attack, size)}"
    folder: Path = options.out / "runs" / "".join(c if c.isalnum() else "_" for c in text)
    words = ["attack", "--data", options.data, "--model", options.model, "--attack", attack, "--no-checks"]
    words += ["--eps", budget(attack, size), "--save-adversarial", "all", "--no-control", "--no-progress"]
    words += ["--device", options.device, "--out", folder]
    subprocess.run([sys.executable, "-m", "medseg_attack", *map(str, words)], check=True, stdout=sys.stderr)
    return folder


def result(detection: Detection, fitted: Calibrated) -> dict[str, Any]:
    """Scores and Dice of every patient, clean, under noise, attacked, and attacked by who knows the detector."""
    patients = per_patient(detection.score(fitted), fitted)
    noise = list(map(control_key, detection.exposures))
    table = patients[list(PATIENT)].assign(noise_of=[noise[row] for row in patients["row"]])
    return {"patients": table.to_dict("records"), "calibration_patients": len(fitted.calibration)}


def merged(of_detector: list[dict[str, Any]]) -> pd.DataFrame:
    """The patients of several lines as `alarm_table` takes them: clean ones and each noise once."""
    order = {"clean": 0, "noise": 1, "attack": 2, "adaptive": 3}
    table = pd.concat([pd.DataFrame(row["patients"]).assign(size=row["size"]) for row in of_detector])
    table.loc[table["kind"] == "clean", ["size", "noise_of"]] = 0.0, ""
    table = table.drop_duplicates([*ROW, "group"])
    table = table.assign(order=table["kind"].map(order)).sort_values(["order", "attack", "loss", "size"], kind="stable")
    table["row"] = table.groupby(ROW, sort=False).ngroup()
    noise = dict(table[table["kind"] == "noise"][["noise_of", "row"]].to_numpy().tolist())
    return table.assign(noise=table["noise_of"].map(noise).fillna(-1).astype(int))


def report(out: Path) -> None:
    runs = rows(out)
    sheets, summary, tables, n, patients = [], [], {}, 0, 0
    for detector in dict.fromkeys([*DETECTORS, *(row["detector"] for row in runs)]):
        of_detector = [row for row in runs if row["detector"] == detector]
        if not of_detector:
            continue
        n = of_detector[0]["calibration_patients"]
        table = alarm_table(merged(of_detector), n)
        patients, opinion = int(table["patients"].min()), verdict(table, n)
        title = f"{detector}: {opinion} ({sum(row['seconds'] for row in of_detector):.0f} s)"
        sheets.append(detector_sheet(table, title=title, n_calibration=n))
        if has_goals(table):
            sheets.append(goal_sheet(table, title=f"{detector} by goal", n_calibration=n))
        tables[detector] = table
        summary.append(overview(detector, table, n, opinion))
    heads = [
        "detector",
        "false alarms",
        "AUROC",
        "95 % CI",
        "AUROC, known",
        "noise",
        "missed",
        "missed, known",
        "verdict",
    ]
    caption = (
        f"{patients} test patients, {n} calibration patients: false alarms and missed at {main_rate(n):.2g}. AUROC: of "
        "the attack that is noticed least of those that harm at least half of the patients; known: of those that know "
        "the detector; noise: the largest against clean; missed: largest share of patients who are harmed unnoticed."
    )
    by_budget = [noticed_sheet(eps, tables) for eps in harmful_budgets(next(iter(tables.values()), pd.DataFrame()))]
    for sheet in (Sheet("Detectors", heads, summary, caption, left=1), *by_budget, *sheets):
        print(markdown(sheet))


def harmful(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The attacks of a kind that harm at least half of the patients, or all of them where none does."""
    of_kind = table[table["kind"] == kind]
    harm = 2 * of_kind["harmed"] >= of_kind["patients"]
    return of_kind[harm] if harm.any() else of_kind


def noticed_sheet(eps: str, tables: dict[str, pd.DataFrame]) -> Sheet:
    """Of the patients whom each attack of a budget harms, how many each detector notices, and of those who know it."""
    columns: dict[str, dict[str, str]] = {}
    for detector, table in tables.items():
        of_budget = table[(table["eps"] == eps) & (table["kind"] != "noise")]
        aware = {name_of(row): row for _, row in of_budget[of_budget["kind"] == "adaptive"].iterrows()}
        for _, row in harmful(of_budget, "attack").iterrows():
            knowing = aware.get(f"evading({row['attack']})" + name_of(row).removeprefix(row["attack"]))
            cell = percent(row["noticed"]) + ("" if knowing is None else f", known {percent(knowing['noticed'])}")
            columns.setdefault(f"{name_of(row)} ({int(row['harmed'])})", {})[detector] = cell
    rows = [[detector, *(cells.get(detector, "") for cells in columns.values())] for detector in tables]
    caption = (
        "Share of the harmed patients for whom there is an alarm, and where the attack knows the detector, of those "
        "whom it harms then (-: nobody). In brackets the patients harmed."
    )
    return Sheet(f"Noticed at {eps}", ["detector", *columns], rows, caption, left=1)


def name_of(row: "pd.Series[Any]") -> str:
    return f"{row['attack']} {row['goal']}".strip()


def harmful_budgets(table: pd.DataFrame) -> list[str]:
    """The budgets at which some attack harms at least half of the patients."""
    if table.empty:
        return []
    attacks = table[(table["kind"] == "attack") & (2 * table["harmed"] >= table["patients"])]
    return list(dict.fromkeys(attacks["eps"]))


def overview(detector: str, table: pd.DataFrame, n: int, opinion: str) -> list[str]:
    """A detector in a line: the AUROC of the harmful attack that it notices least, of either kind, and the verdict."""
    kinds = {str(kind): of_kind for kind, of_kind in table.groupby("kind")}
    hard = harmful(table, "attack")
    unaware = hard.iloc[int(hard["auroc"].to_numpy().argmin())]
    aware = kinds.get("adaptive", pd.DataFrame({"auroc": [np.nan], "missed": [np.nan]}))
    return [
        detector,
        percent(float(kinds["clean"][f"alarms_{main_rate(n):.2g}"].iloc[0])),
        number(unaware["auroc"], 2),
        between(unaware["low"], unaware["high"]),
        number(float(harmful(table, "adaptive")["auroc"].min()) if "adaptive" in kinds else np.nan, 2),
        number(float(kinds["noise"]["auroc"].max()), 2),
        percent(float(kinds["attack"]["missed"].max())),
        percent(float(aware["missed"].max())),
        opinion,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="prepared data set, whose models say which patients are tested")
    parser.add_argument("--model", help="trained model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and rows")
    parser.add_argument("--attack", action="append", help="instead of those of the page; repeat for several")
    parser.add_argument("--size", type=float, action="append", help="of 255, instead of 1, 2, 4 and 8")
    parser.add_argument("--detector", action="append", help="instead of all; repeat for several")
    parser.add_argument("--weight", type=float, action="append", help="of the score in attacks that know the detector")
    parser.add_argument("--knowing", action="append", help="instead of evading and orthogonal; repeat for several")
    parser.add_argument("--part", default="0/1", help="k/N: every N-th run, from the k-th on")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--report", action="store_true", help="print the tables and run nothing")
    options = parser.parse_args()
    if not options.report:
        run(options)
    report(options.out)


if __name__ == "__main__":
    main()
