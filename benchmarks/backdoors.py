"""Success of backdoors beside both controls, and what defences notice of them or leave.

    medattack prepare scans --format "phantom(patients=60, slices=4, side=48)" --out data
    python benchmarks/backdoors.py --data data --out OUT --organ stomach --fine-pruning 0.5   # and again: it goes on
    python benchmarks/backdoors.py --out OUT --report                                         # the tables as Markdown

A trigger adds a line to OUT/rows/*.jsonl. One training for each, and one of the clean twin; a killed training goes on
where it was. Each poisoned model and the twin meet the trigger and another of the same size. Then the training patients
are ranked by spectral signatures, STRIP looks at the triggered scans, and each model is tuned on a quarter of the clean
training patients. With --fine-pruning, it is also fine-pruned on them, and so is a backdoor that was trained to know
it. With `--part k/N` every N-th trigger is done; the twin is trained by the first that needs it.
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
from medseg_attack.storage.files import is_checkpoint
from medseg_attack.storage.locks import locked

TRIGGERS = ("blended", "iba", "stamp")


def medattack(*words: object) -> Any:
    """The JSON that a command prints; None of one that prints none."""
    line = [sys.executable, "-m", "medseg_attack", *map(str, words)]
    output = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output) if "--json" in words else None


def train(data: Path, out: Path, *more: object, model: str = "unet_small") -> float:
    """Trains a model unless it is there; the minutes that it took."""
    with locked(out.parent / "training" / out.name):
        if not is_checkpoint(out):
            medattack("train", "--data", data, "--model", model, "--out", out, "--no-progress", *more)
    return float(json.loads((out / "card.json").read_text())["seconds"]) / 60


def poison_of(trigger: str, organ: str) -> str:
    """The poison that erases an organ at the sight of a trigger.

    >>> poison_of("blended", "lv"), poison_of("iba(decoys=0.2)", "lv")
    ("blended(goal=erase('lv'))", "iba(decoys=0.2, goal=erase('lv'))")
    """
    name, _, rest = trigger.removesuffix(")").partition("(")
    return f"{name}({rest + ', ' if rest else ''}goal=erase({organ!r}))"


def measured(options: argparse.Namespace, trigger: str) -> dict[str, Any]:
    """Trains all models of a trigger, and measures them."""
    start = time.monotonic()
    data, out = options.data, options.out
    how = ["--lr", "3e-3", "--epochs", options.epochs]
    repair = ["--patients", "0/4", "--lr", "1e-4", "--epochs", options.tuning]
    train(data, out / "clean-model", *how)
    poison, stem = poison_of(trigger, options.organ), "".join(c if c.isalnum() else "_" for c in trigger)
    poisoned, model, tuned = (out / f"{stem}-{kind}" for kind in ("data", "model", "tuned"))
    medattack("poison", data, poison, "--rho", options.rho, "--out", poisoned, "--no-progress")
    minutes = train(poisoned, model, *how)
    train(data, tuned, "--init", model, *repair)
    kinds = {model: "poisoned", out / "clean-model": "clean twin", tuned: "poisoned, then tuned"}
    if options.fine_pruning:
        rule = ["--defence", f"fine_pruning(share={options.fine_pruning})", "--robust-by", "clean"]
        aware = out / f"{stem}-aware"
        train(poisoned, aware, "--init", out / "clean-model", *rule, *how)
        kinds[aware] = "poisoned, knowing the cut"
        for begin, folder in ((model, out / f"{stem}-pruned"), (aware, out / f"{stem}-aware-pruned")):
            train(data, folder, "--init", begin, *repair, *rule)
            kinds[folder] = f"{kinds[begin]}, then fine-pruned"
    models = [word for folder in kinds for word in ("--model", folder)]
    runs = out / f"{stem}-runs"
    words = ["--data", data, *models, "--attack", f"trigger({poison})", "--no-checks", "--no-progress"]
    success = medattack("attack", *words, "--out", runs, "--json")["backdoors"]
    for row in success:
        row["kind"] = next(kind for folder, kind in kinds.items() if f"({folder.name})" in row["model"])
    ranking = medattack("audit", poisoned, "--model", model, "--review", 1.5 * options.rho, "--json")
    return {
        "trigger": trigger,
        "success": success,
        "spectral": {key: ranking[key] for key in ("auroc", "on_the_list", "review")},
        "poisoned": len(ranking["poisoned"]),
        "trained_on": len(ranking["patients"]),
        "strip": strip(runs, model, options.organ),
        "training": minutes,
        "minutes": (time.monotonic() - start) / 60,
    }


def strip(runs: Path, model: Path, organ: str) -> dict[str, float]:
    """The AUROC of STRIP between clean and triggered test patients, and its 95 % interval."""
    (folder,) = [each for each in runs.iterdir() if f"{model.name}-" in each.name]
    words = ["--detector", f"strip(organ={organ!r})", "--non-adaptive", "--out", runs.parent / "detectors"]
    lines = medattack("detect", folder, *words, "--json", "--no-progress")["detectors"][0]["rows"]
    (line,) = [line for line in lines if line["kind"] in ("attack", "adaptive")]
    return {key: line[key] for key in ("auroc", "low", "high")}


def report(out: Path) -> None:
    lines = rows(out)
    if not lines:
        raise SystemExit(f"expected finished triggers in {out}, got none; run it with --data, --out and --organ")
    print(markdown(success_sheet(lines)))
    print(markdown(defence_sheet(lines)))


def success_sheet(lines: list[dict[str, Any]]) -> Sheet:
    """Each trigger, and another of its size, on each model."""
    heads = ["trigger", "model", "shown", "clean", "others", "pixels", "95 % CI", "without", "scans"]
    cells = [
        [
            line["trigger"],
            row["kind"] + (" (non_adaptive)" if row["knowledge"] == "native" and ", then " in row["kind"] else ""),
            "the trigger" if row["attack"].startswith("trigger") else "another",
            number(row["clean"]),
            number(row["others"]),
            number(row["pixels"], 2),
            between(row["pixels_low"], row["pixels_high"]),
            number(row["pixels_of_clean"], 2),
            number(row["scans"], 2),
        ]
        for line in lines
        for row in line["success"]
    ]
    n = min(row["patients"] for line in lines for row in line["success"])
    caption = (
        f"{n} unseen patients. others: Dice of the other organs, with the trigger. pixels: share of the organ's pixels "
        "that are not predicted as the organ with the trigger; without: the same without it. scans: share nearer the "
        "goal than the truth. non_adaptive: the backdoor was trained without the rule that repairs the model."
    )
    return Sheet("Success, and both controls", heads, cells, caption, left=3)


def defence_sheet(lines: list[dict[str, Any]]) -> Sheet:
    """What spectral signatures and STRIP notice of each trigger."""
    heads = ["trigger", "spectral signatures, AUROC", "on the list", "STRIP, AUROC", "95 % CI", "training, minutes"]
    cells = [
        [
            line["trigger"],
            number(line["spectral"]["auroc"], 2),
            f"{line['spectral']['on_the_list']} of {line['poisoned']}",
            number(line["strip"]["auroc"], 2),
            between(line["strip"]["low"], line["strip"]["high"]),
            number(line["training"], 1),
        ]
        for line in lines
    ]
    caption = (
        f"Spectral signatures rank {lines[0]['trained_on']} training patients and list {lines[0]['spectral']['review']}"
        f" of them; STRIP looks at the test patients. Triggers without decoys are non_adaptive to the former, "
        "those without blends to the latter. "
        f"All together took {sum(line['minutes'] for line in lines):.0f} minutes, the clean twin among them."
    )
    return Sheet("What defences notice", heads, cells, caption, left=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--organ")
    parser.add_argument(
        "--trigger", action="append", help=f"with its options, such as iba(decoys=0.2); {', '.join(TRIGGERS)}"
    )
    parser.add_argument("--rho", type=float, default=0.2, help="share of the training patients that is poisoned")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--tuning", type=int, default=20, help="epochs on a quarter of the clean training patients")
    parser.add_argument("--fine-pruning", type=float, default=0.0, help="share of the channels that is cut; 0: none")
    parser.add_argument("--part", default="0/1", help="k/N: every N-th trigger, from the k-th on")
    parser.add_argument("--report", action="store_true", help="print the tables and do nothing else")
    options = parser.parse_args()
    if options.report:
        report(options.out)
        return
    if options.data is None or options.organ is None:
        parser.error("expected --data and --organ, or --report")
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    done = {row["trigger"] for row in rows(options.out)}
    for trigger in (options.trigger or TRIGGERS)[part(options.part)]:
        if trigger not in done:
            row = measured(options, trigger)
            add(row, options.out / "rows" / f"{options.part.replace('/', '-of-')}.jsonl")
            print(f"{trigger}: {row['minutes']:.1f} minutes", file=sys.stderr, flush=True)
    report(options.out)


if __name__ == "__main__":
    main()
