"""Causes of transfer between models: shared pre-training, architecture, development data, or the size of the change?

    python benchmarks/reproduce/bortsova2021.py --data DATA --pretraining PHANTOM --out FOLDER

Re-tests the findings of Bortsova et al. (arXiv 2006.06356) on segmentation models trained here: trains the targets and
their surrogates, runs bortsova2021.yaml and prints Markdown tables and verdicts with intervals over patients. What was
trained or attacked before is kept. Natural images' weights are replaced by a pre-training on synthetic scans.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.runs.reading import read_runs
from medseg_attack.stats.patients import Difference, difference, interval, warning
from medseg_attack.stats.scores import pooled, scored

STUDY = Path(__file__).with_suffix(".yaml").resolve()
NETWORKS = {"unet": "unet_small", "deep": "unet_small(channels=(8, 16, 32, 64, 128))"}
# the part of the training patients, and epochs for about as many optimiser steps; "target" is what is attacked
DATA = {
    "target": ("0/2", 40, 0),
    "same": ("0/2", 40, 1),
    "disjoint": ("1/2", 40, 1),
    "half": ("0/4", 80, 1),
    "least": ("0/8", 160, 1),
}
SURROGATES = [("unet", pre, data) for pre in ("random", "pretrained") for data in DATA]
SURROGATES += [("deep", "random", "same"), ("deep", "random", "disjoint")]
PATIENTS = {
    "same": "the same patients",
    "disjoint": "as many other patients",
    "half": "half of them",
    "least": "one of them",
}


def medattack(out: Path, *words: object) -> None:
    command = [sys.executable, "-m", "medseg_attack", *map(str, words)]
    subprocess.run(command, check=True, cwd=out, stdout=subprocess.DEVNULL)


def train(data: Path, pretraining: Path, out: Path) -> None:
    """All models that are not there yet, `out/models/<network>-<pre-training>-<data>`."""
    rate = ("--lr", "2e-3")
    medattack(
        out,
        "train",
        "--data",
        pretraining,
        "--model",
        NETWORKS["unet"],
        "--epochs",
        16,
        "--seed",
        7,
        "--lr",
        "1e-3",
        "--out",
        "models/unet-pretraining",
    )
    for network, pre, of in SURROGATES:
        part, epochs, seed = DATA[of]
        begun = ("--init", f"models/{network}-pretraining") if pre == "pretrained" else ()
        medattack(
            out,
            "train",
            "--data",
            data,
            "--model",
            NETWORKS[network],
            "--patients",
            part,
            "--epochs",
            epochs,
            "--seed",
            seed,
            *rate,
            *begun,
            "--out",
            f"models/{network}-{pre}-{of}",
        )


def facts(label: str) -> dict[str, str]:
    """Facts in a run's label: the surrogate's factors ("" for the white-box attack), the kind of run and its steps."""
    surrogate = re.search(r"models/(\w+)-(\w+)-(\w+)", label)
    network, pre, data = surrogate.groups() if surrogate else ("", "", "")
    kind = "shuffled" if label.startswith("shuffled") else "noise" if label.startswith("noise") else "attack"
    return {"network": network, "pre": pre, "of": data, "kind": kind, "steps": "1" if "fgsm" in label else "5"}


def read(runs: Path) -> pd.DataFrame:
    """A row per target, attack and patient: mean Dice over organs, clean and attacked."""
    rows = read_runs([runs], allow_partial=True)
    heads = rows.drop_duplicates("run").set_index("run")
    cases = scored(pooled(rows, "patient"), "one")
    table = cases.groupby(["run", "group"], sort=False)[["dice_clean", "dice_adv"]].mean().reset_index()
    table["attack"] = table["run"].map(heads["attack"])
    table["eps"] = table["run"].map(heads["eps"])
    table["target"] = table["run"].map(lambda run: target_of(run).split("-")[1])
    more = pd.DataFrame([facts(label) for label in table["attack"]], index=table.index)
    return table.join(more)


def target_of(run: str) -> str:
    """The checkpoint that a run attacked, by its weights: both targets have one label."""
    import json

    weights = json.loads((Path(run) / "config.json").read_text(encoding="utf-8"))["weights"]
    for card in Path(run).parents[2].glob("models/unet-*-target/card.json"):
        if json.loads(card.read_text(encoding="utf-8"))["weights_sha256"] == weights:
            return card.parent.name
    raise SystemExit(f"expected a target of {run} among the models, got none")


def cell(table: pd.DataFrame, target: str, eps: float = 0.02, steps: str = "5", **of: str) -> "pd.DataFrame":
    chosen = table[(table["target"] == target) & (table["eps"] == eps) & (table["steps"] == steps)]
    for column, value in ({"kind": "attack"} | of).items():
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == chosen["group"].nunique(), f"expected one run of {target}, {eps}, {steps}, {of}"
    return chosen.set_index("group").sort_index()


def ratio(table: pd.DataFrame, target: str, eps: float = 0.02, steps: str = "5", **of: str) -> "pd.Series[float]":
    """Per patient, the share of the white-box drop in Dice that the surrogate's attack makes."""
    white = cell(table, target, eps, steps, network="")
    result = cell(table, target, eps, steps, **of)
    return (result["dice_clean"] - result["dice_adv"]) / (white["dice_clean"] - white["dice_adv"])


def framed(values: "pd.Series[float]") -> pd.DataFrame:
    return pd.DataFrame({"group": values.index, "unit": values.index, "cls": "all", "difference": values.to_numpy()})


def shown(values: "pd.Series[float]") -> str:
    low, high = interval(framed(values), "difference", bounds=(-1.0, 2.0))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def verdict(what: str, values: "pd.Series[float]") -> str:
    result: Difference = difference(framed(values))
    sure = "yes" if result.low > 0 else "no, the reverse" if result.high < 0 else "undecided"
    return f"- {what}: {result.mean:+.2f} [{result.low:+.2f}, {result.high:+.2f}], p = {result.p:.3f}: **{sure}**"


def report(table: pd.DataFrame) -> str:
    targets = ("random", "pretrained")
    heads = [f"{t} target{part}" for t in targets for part in (", Dice", ", shuffled", ", share of white-box drop")]
    lines = ["| surrogate | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    lines.append(
        "| the target itself (white box) | "
        + " | ".join(f"{cell(table, t, network='')['dice_adv'].mean():.3f} |  | 1" for t in targets)
        + " |"
    )
    for network, pre, of in SURROGATES:
        if of == "target":
            continue
        row = [
            f"{cell(table, t, network=network, pre=pre, of=of)['dice_adv'].mean():.3f} | "
            f"{cell(table, t, network=network, pre=pre, of=of, kind='shuffled')['dice_adv'].mean():.3f} | "
            + shown(ratio(table, t, network=network, pre=pre, of=of))
            for t in targets
        ]
        lines.append(f"| {network}, {pre}, {PATIENTS[of]} | " + " | ".join(row) + " |")
    lines += ["", "Share of the white-box drop by the size of the change (one step, same patients):", ""]
    lines += ["| target and surrogate | 0.01 | 0.02 | 0.04 |", "| --- |" + " ---: |" * 3]
    for t in targets:
        each = [shown(ratio(table, t, eps, "1", network="unet", pre=t, of="same")) for eps in (0.01, 0.02, 0.04)]
        lines.append(f"| {t} | " + " | ".join(each) + " |")
    return "\n".join([*lines, "", *verdicts(table)])


def verdicts(table: pd.DataFrame) -> list[str]:
    def share(target: str, of: str, pre: str = "", network: str = "unet") -> "pd.Series[float]":
        return ratio(table, target, network=network, pre=pre or target, of=of)

    lines = ["Does pre-training of both raise the share that transfers (both pre-trained less both random)?", ""]
    lines += [
        verdict(f"surrogate of {PATIENTS[of]}", share("pretrained", of) - share("random", of))
        for of in ("same", "disjoint", "half", "least")
    ]
    lines += ["", "Does it need the same pre-training on both sides (both pre-trained less surrogate random)?", ""]
    lines.append(verdict("the same patients", share("pretrained", "same") - share("pretrained", "same", "random")))
    lines += ["", "Do other development data lower it (the same patients less others)?", ""]
    for target in ("random", "pretrained"):
        for of in ("disjoint", "half", "least"):
            lines.append(verdict(f"both {target}, {PATIENTS[of]}", share(target, "same") - share(target, of)))
    lines += ["", "Does another architecture lower it (unet less deep, both random)?", ""]
    for of in ("same", "disjoint"):
        gap = share("random", of) - share("random", of, "random", "deep")
        lines.append(verdict(PATIENTS[of], gap))
    clean = [cell(table, t, network="")["dice_clean"].mean() for t in ("random", "pretrained")]
    noise = [cell(table, t, kind="noise")["dice_adv"].mean() for t in ("random", "pretrained")]
    n = table["group"].nunique()
    said = (
        f"Clean mean Dice {clean[0]:.3f} (random target), {clean[1]:.3f} (pre-trained); under noise of the same size "
        f"{noise[0]:.3f}, {noise[1]:.3f}. {plural(n, 'unseen patient')}. {warning(n)}"
    )
    lines += ["", said.rstrip()]
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--pretraining", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.data.resolve()
    train(data, args.pretraining.resolve(), args.out)
    medattack(args.out, "attack", "--config", STUDY, "--data", data, "--no-checks", "--out", "runs")
    print(report(read(args.out / "runs")))


if __name__ == "__main__":
    main()
