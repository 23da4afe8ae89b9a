"""Valid small inputs of commands that read what other commands wrote, for `tests/fuzz.py` to damage."""

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from helpers.fuzz_kinds import SMALL, Kind

PHANTOM = "phantom(patients=10, slices=2, side=16)"
ATTACK = ("attack", "--data", "data", "-m", "model", "--device", "cpu", "--eps", "0.1", "--no-checks")
GUARDED = "guarded('model', [denoiser(file='cleaner')])"


def products(root: Path, run: Callable[..., None]) -> list[Kind]:
    """Pages, figures, certificates, detectors, denoisers, poisons, baselines, entries and answers of readers."""
    home = root / "products"
    home.mkdir()
    with chdir(home):
        run("prepare", "scans", "--format", PHANTOM, "--out", "data", "--test", "0.3", "--folds", "3")
        run("train", "--data", "data", *SMALL, "--out", "model")
        run("train", "--data", "data", "--denoiser", "--epochs", "1", "--device", "cpu", "--out", "cleaner")
        run(*ATTACK, "--attack", "fgsm", "--save-adversarial", "all", "--out", "run")
        run("detect", "run", "--detector", "entropy", "--false-alarms", "0.5", "--out", "detector", "--device", "cpu")
        certificate = "expected_dice(draws=10, alpha=0.5, sigma=0.1)"
        certify = (
            *("certify", "-m", "model", "--data", "data", "--certificate", certificate, "--radius", "0.01"),
            *("--check", "0", "--limit", "2", "--device", "cpu"),
        )
        run(*certify, "--out", "certificate")
        attacked = next(file.parent for file in Path("run").rglob("run.json") if "fgsm" in file.parent.name)
        run("readers", str(attacked), "--trials", "6", "--out", "study")
        _write_answers(Path("answers.csv"), json.loads(Path("study/key.json").read_text()))
        run("compare", "run", "--save-as", "main", "--home", "home")
        run("report", "run", "--entry", "--out", "entries")
    page = ("report", "run", "certificate", "detector", "--out", "out/page")
    (detector,) = (home / "detector").rglob("*.safetensors")
    file = str(detector.relative_to(home))
    score = ("screen", "data", "--detector", file, "-m", "model", "--false-alarms", "0.5", "--csv", "out/s.csv")
    (home / "out").mkdir()
    begun = root / "certificate begun"
    shutil.copytree(home, begun)
    shutil.copytree(home / "certificate", begun / "out", dirs_exist_ok=True)
    return [
        Kind("page", home, page),
        Kind("card", home, ("report", "run", "--card", "--out", "out/card")),
        Kind("figure", home, ("figure", "gallery", "run", "--out", "out/gallery.png")),
        Kind("cite", home, ("cite", "run")),
        Kind("factors", home, ("compare", "run", "--factor", "luminosity", "--factor", "gradient_concentration")),
        Kind("certificate", begun, (*certify, "--out", "out")),
        Kind("detector", home, (*score, "--device", "cpu")),
        Kind("denoiser", home, ("evaluate", "-m", GUARDED, "--data", "data", "--out", "out/e", "--device", "cpu")),
        Kind("poison", home, ("poison", "data", "stamp", "--rho", "0.5", "--out", "out/poisoned")),
        Kind("audit", home, ("audit", "data", "--model", "model", "--by", "spectral")),
        Kind("baseline", home, ("compare", "run", "--reference", "main", "--home", "home")),
        Kind("leaderboard", home, ("leaderboard", "entries", "--out", "out/board")),
        Kind("readers", home, ("readers", "study", "--score", "answers.csv")),
    ]


def _write_answers(file: Path, key: dict[str, Any]) -> None:
    with file.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["study", "reader", "trial", "answer"])
        table.writerows([key["study"], "a", trial["trial"], "left"] for trial in key["trials"])
