"""What networks learn from data that are made unlearnable, and what augmentation and adversarial training bring back.

    medattack prepare acdc --format acdc --size 64,64 --test 0.5 --out data
    python benchmarks/unlearnable.py --data data --out OUT   # and again: it goes on

Error-minimising noise is put on the training patients: on all of them, plain and robust (learned against an inner
attack and over flips), and plain on a share. A network is trained on each copy: on the images as they are, augmented,
and as they are under FGSM of half the noise's size. So is its twin on clean data. Test patients are clean.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from backdoors import medattack, train

from medseg_attack.report.sheet import Sheet, between, from_to_signed, markdown, number, signed
from medseg_attack.runs.reading import find_runs, read_runs
from medseg_attack.runs.stored_files import read_config
from medseg_attack.stats.patients import change, interval, mean_score, paired
from medseg_attack.stats.scores import pooled, scored

NOISES = {  # name of the row: options beside its size
    "none": None,
    "error-minimising": "",
    "robust error-minimising": ", radius=4/255, draws=1",
}
TRAININGS = {  # name of the row: options
    "as they are": ("--no-augment",),
    "augmented": (),
    "adversarial": ("--no-augment", "--defence", "adversarial(attack=fgsm(linf(4/255)))", "--robust-by", "clean"),
}
NON_ADAPTIVE = ("error-minimising", "adversarial")  # the noise was not learned against that training


def lines(share: float) -> Iterator[tuple[str, float, list[str]]]:
    """The noises with the share of the training patients who carry them, and the trainings that meet them."""
    for noise in NOISES:
        yield noise, 0.0 if noise == "none" else 1.0, list(TRAININGS)
    yield "error-minimising", share, ["augmented"]


def measured(options: argparse.Namespace, noise: str, rho: float, trainings: list[str]) -> None:
    """Makes the data, trains the networks, and runs them on the test patients."""
    stem = "".join(c if c.isalnum() else "_" for c in f"{noise} {rho:g}")
    data, rule = options.data, NOISES[noise]
    if rule is not None:
        how = f"rounds={options.rounds}, steps={options.steps}, updates=20, model={options.model!r}"
        data = options.out / f"{stem}-data"
        poison = f"unlearnable(eps=8/255, {how}{rule})"
        medattack("poison", options.data, poison, "--rho", rho, "--out", data, "--no-progress")
    models = {}
    for name in trainings:
        models[name] = options.out / f"{stem}-{name.replace(' ', '_')}"
        how_long = ["--lr", "3e-3", "--epochs", options.epochs]
        train(data, models[name], *how_long, *TRAININGS[name], model=options.model)
    words = [word for folder in models.values() for word in ("--model", folder)]
    runs = options.out / f"{stem}-runs"
    medattack("attack", "--data", options.data, *words, "--attack", "clean", "--no-control", "--out", runs)
    cards = {name: json.loads((folder / "card.json").read_text()) for name, folder in models.items()}
    facts = {"noise": noise, "rho": rho, "runs": str(runs)}
    facts["trainings"] = {
        name: {"weights": card["weights_sha256"], "minutes": card["seconds"] / 60, "epoch": card["best_epoch"]}
        for name, card in cards.items()
    }
    (runs / "line.json").write_text(json.dumps(facts))


def sheet(out: Path) -> Sheet:
    """Dice of each network on clean test patients, beside that of its twin, which learned from clean data."""
    cells: list[list[str]] = []
    twins: dict[str, pd.DataFrame] = {}
    n_patients, minutes = 0, 0.0
    for file in sorted(out.glob("*-runs/line.json"), key=lambda file: file.stat().st_mtime):
        line = json.loads(file.read_text())
        by_weights = {read_config(run)["weights"]: read_runs([run]) for run in find_runs([file.parent])}
        for name, facts in line["trainings"].items():
            cases = scored(pooled(by_weights[facts["weights"]], "patient"), "one")
            twins.setdefault(name, cases)
            cells.append([*_names(line, name), *_dice(cases, twins[name]), str(facts["epoch"])])
            n_patients, minutes = cases["group"].nunique(), minutes + facts["minutes"]
    if not cells:
        raise SystemExit(f"expected finished networks in {out}, got none; run it with --data and --out")
    caption = (
        f"Dice of {n_patients} clean test patients, mean over organs, and its change to the twin that learned from "
        "clean data, paired by patient. share: of the training patients who carry the noise. epoch: that with the best "
        "Dice on clean validation patients, which is kept. non_adaptive: the noise was learned without regard to that "
        f"training. The trainings took {minutes:.0f} minutes."
    )
    heads = ["noise", "share", "training", "Dice", "95 % CI", "to the twin", "95 % CI", "epoch"]
    return Sheet("What is learned", heads, cells, caption, left=3)


def _names(line: dict[str, object], training: str) -> list[str]:
    mark = " (non_adaptive)" if (line["noise"], training) == NON_ADAPTIVE else ""
    return [str(line["noise"]), f"{line['rho']:.0%}", training + mark]


def _dice(cases: pd.DataFrame, twin: pd.DataFrame) -> list[str]:
    score = "dice_clean"
    own = [number(mean_score(cases, score)), between(*interval(cases, score))]
    if cases is twin:
        return [*own, "", ""]
    result = change(paired(cases, twin, score))
    return [*own, signed(result.mean), from_to_signed(result.low, result.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="unet_small")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6, help="turns of the noise and its network")
    parser.add_argument("--steps", type=int, default=4, help="of the noise in a turn, a tenth of its size each")
    parser.add_argument("--share", type=float, default=0.25, help="of the training patients, where not all carry noise")
    parser.add_argument("--report", action="store_true", help="print the table and do nothing else")
    options = parser.parse_args()
    if not options.report:
        if options.data is None:
            parser.error("expected --data, or --report")
        options.out.mkdir(parents=True, exist_ok=True)
        for noise, rho, trainings in lines(options.share):
            measured(options, noise, rho, trainings)
    print(markdown(sheet(options.out)))


if __name__ == "__main__":
    main()
