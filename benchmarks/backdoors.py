"""Success of backdoors beside both controls, and what defences notice of them or leave.

    medattack prepare scans --format "phantom(patients=30, slices=8, side=64)" --out data
    python benchmarks/backdoors.py --data data --out backdoors --organ stomach

One training for each trigger, and one of the clean twin; what is in OUT already is not done again. Each poisoned model
and the twin meet the trigger and another of the same size. Then the training patients are ranked by spectral
signatures, STRIP looks at the triggered scans, and each model is tuned on a quarter of the clean training patients.
With --fine-pruning, it is also fine-pruned on them, and so is a backdoor that was trained to know it. Prints tables.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TRIGGERS = ("stamp", "blended", "fiba", "iba")


def medattack(*words: object) -> Any:
    """The JSON that a command prints; None of one that prints none."""
    line = [sys.executable, "-m", "medseg_attack", *map(str, words)]
    output = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output) if "--json" in words else None


def train(data: Path, out: Path, *more: object) -> float:
    """Trains a model unless it is there; the minutes that it took."""
    if not (out / "card.json").is_file():
        medattack("train", "--data", data, "--model", "unet_small", "--out", out, "--no-progress", *more)
    return float(json.loads((out / "card.json").read_text())["seconds"]) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--organ", required=True)
    parser.add_argument("--rho", type=float, default=0.2)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--fine-pruning", type=float, default=0.0, help="share of the channels that is cut; 0: none")
    options = parser.parse_args()
    data, out = options.data, options.out
    how = ["--lr", "3e-3", "--epochs", options.epochs]
    print(f"clean twin: {train(data, out / 'clean-model', *how):.0f} minutes\n")
    print("| trigger | model | shown | clean | others | pixels | 95 % CI | without | scans |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    noticed: list[str] = []
    for name in TRIGGERS:
        poison = f"{name}(goal=erase({options.organ!r}))"
        poisoned, model, tuned = (out / f"{name}-{kind}" for kind in ("data", "model", "tuned"))
        if not (poisoned / "dataset.json").is_file():
            medattack("poison", data, poison, "--rho", options.rho, "--out", poisoned, "--no-progress")
        minutes = train(poisoned, model, *how)
        train(data, tuned, "--init", model, "--patients", "0/4", "--lr", "1e-4", "--epochs", 20)
        repaired = []
        if options.fine_pruning:
            rule = ["--defence", f"fine_pruning(share={options.fine_pruning})", "--robust-by", "clean"]
            aware = out / f"{name}-aware"
            train(poisoned, aware, "--init", out / "clean-model", *rule, *how)
            for start, kind in ((model, "naive"), (aware, "aware")):
                repaired.append(out / f"{name}-repaired-{kind}")
                repair = ["--init", start, "--patients", "0/4", "--lr", "1e-4", "--epochs", 20, *rule]
                train(data, repaired[-1], *repair)
        models = [word for each in (model, out / "clean-model", tuned, *repaired) for word in ("--model", each)]
        words = ["--data", data, *models, "--attack", f"trigger({poison})", "--no-checks", "--no-progress"]
        runs = out / f"{name}-runs"
        for row in medattack("attack", *words, "--out", runs, "--json")["backdoors"]:
            print(line_of(name, poison, row))
        ranking = medattack("audit", poisoned, "--model", model, "--review", "0.3", "--json")
        noticed.append(f"| {name} | {minutes:.0f} | {ranking['auroc']:.2f} | {strip(runs, model, options.organ)} |")
    print(
        "\n| trigger | minutes of training | AUROC of spectral signatures, patients | AUROC of STRIP, test patients |"
    )
    print("\n".join(["|---|---:|---:|---:|", *noticed]))


def line_of(name: str, poison: str, row: dict[str, Any]) -> str:
    """A row of the table of triggers."""
    which = "the trigger" if row["attack"] == f"trigger(poison={poison})" else "another"
    interval = f"{row['pixels_low']:.2f}-{row['pixels_high']:.2f}"
    shares = f"{row['pixels']:.2f} | {interval} | {row['pixels_of_clean']:.2f} | {row['scans']:.2f}"
    which += " (non_adaptive)" if row["knowledge"] == "native" else ""
    return f"| {name} | {row['model']} | {which} | {row['clean']:.3f} | {row['others']:.3f} | {shares} |"


def strip(runs: Path, model: Path, organ: str) -> str:
    """The AUROC of STRIP between clean and triggered test patients."""
    (folder,) = [each for each in runs.iterdir() if f"{model.name}-" in each.name]
    words = ["--detector", f"strip(organ={organ!r})", "--non-adaptive", "--out", runs.parent / "detectors"]
    rows = medattack("detect", folder, *words, "--json", "--no-progress")["detectors"][0]["rows"]
    return f"{next(row['auroc'] for row in rows if row['kind'] == 'attack'):.2f}"


if __name__ == "__main__":
    main()
