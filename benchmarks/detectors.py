"""Detectors side by side: what they notice of attacks that do not know them, and of those that do; a verdict on each.

    python benchmarks/detectors.py --data DATA --model MODEL --out OUT --attack fgsm --attack 'pgd(steps=20)' \
        --eps 4/255 --eps 8/255 --detector entropy --detector mgm > detectors.md

Runs that are there are used again. Detector by detector the table is written as soon as it is known.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseg_attack.report.detectors import detector_sheet
from medseg_attack.report.sheet import Sheet, between, markdown, number, percent
from medseg_attack.stats.alarms import main_rate

DETECTORS = (
    "entropy",
    "probability_margin",
    "variation_ratio",
    "feature_squeezing",
    "rotation_consistency",
    "spatial_consistency(pairs=10)",
    "plausible_mask",
    "mgm",
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
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of what each detector gave")
    parser.add_argument("--attack", action="append", default=[])
    parser.add_argument("--eps", action="append", default=[])
    parser.add_argument("--detector", action="append", default=[])
    parser.add_argument("--weight", action="append", default=[])
    options = parser.parse_args()
    attacks = options.attack or ["fgsm", "pgd(steps=20)"]
    words = ["attack", "--data", options.data, "--model", options.model, "--no-checks", "--no-progress"]
    words += ["--save-adversarial", "all"]  # made once for all detectors
    words += [word for attack in attacks for word in ("--attack", attack)]
    words += [word for eps in options.eps or ["4/255"] for word in ("--eps", eps)]
    medattack(*words, "--out", options.out / "runs")
    results = []
    for detector in options.detector or DETECTORS:
        results.append(detected(options.out, detector, options.weight))
        print(f"{detector}: {results[-1]['verdict']}", file=sys.stderr, flush=True)
    print(markdown(overview(results)))
    for result in results:
        table = table_of(result)
        title = f"{result['detector']}: {result['verdict']} ({result['seconds']:.0f} s)"
        print(markdown(detector_sheet(table, title=title, n_calibration=result["calibration_patients"])))


def medattack(*words: Any) -> str:
    command = [sys.executable, "-m", "medseg_attack", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def detected(out: Path, detector: str, weights: list[str]) -> dict[str, Any]:
    """What `medattack detect` says, from an earlier call if there was one."""
    file = out / f"{''.join(c if c.isalnum() else '_' for c in detector)[:80]}.json"
    if not file.exists():
        start = time.monotonic()
        words = ["detect", out / "runs", "--detector", detector, "--json", "--no-progress", "--out", out / "detectors"]
        words += [word for weight in weights for word in ("--weight", weight)]
        (result,) = json.loads(medattack(*words))["detectors"]
        file.write_text(json.dumps(result | {"seconds": time.monotonic() - start}))
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def table_of(result: dict[str, Any]) -> pd.DataFrame:
    """The rows of JSON as a table: null is not a number."""
    table = pd.DataFrame(result["rows"])
    words = ["kind", "attack", "eps"]
    return pd.concat([table[words].astype(str), table.drop(columns=words).astype(float)], axis=1)


def overview(results: list[dict[str, Any]]) -> Sheet:
    """A row per detector: the AUROC of the attack that it notices least, of either kind, and the verdict."""
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
    rows = []
    for result in results:
        table = table_of(result)
        rate = f"alarms_{main_rate(result['calibration_patients']):.2g}"
        kinds = {str(kind): of_kind for kind, of_kind in table.groupby("kind")}
        unaware = kinds["attack"].iloc[int(kinds["attack"]["auroc"].to_numpy().argmin())]
        aware = kinds.get("adaptive", pd.DataFrame({"auroc": [np.nan], "missed": [np.nan]}))
        rows.append(
            [
                result["detector"],
                percent(float(kinds["clean"][rate].iloc[0])),
                number(unaware["auroc"], 2),
                between(unaware["low"], unaware["high"]),
                number(float(aware["auroc"].min()), 2),
                number(float(kinds["noise"]["auroc"].max()), 2),
                percent(float(kinds["attack"]["missed"].max())),
                percent(float(aware["missed"].max())),
                result["verdict"],
            ]
        )
    n, patients = results[0]["calibration_patients"], int(results[0]["rows"][0]["patients"])
    caption = (
        f"{patients} test patients, {n} calibration patients: false alarms and missed at {main_rate(n):.2g}. AUROC: of "
        "the attack that is noticed least; known: of those that know the detector; noise: the largest against clean; "
        "missed: largest share of patients who are harmed unnoticed."
    )
    return Sheet("Detectors", heads, rows, caption, left=1)


if __name__ == "__main__":
    main()
