"""A folder of another kind than a command wants is called what it is, with the command that reads it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.dicoms import tiny_model
from helpers.runs import dice_of, write_run

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.models.checkpoints import save_tensors
from medseg_attack.storage.kinds import KINDS, kind_of

RUNS = "'medattack compare' reads them"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a folder of every kind, by commands where they take seconds."""
    home = tmp_path_factory.mktemp("kinds") / "home"
    write_bright(home / "scans", patients=4)
    medattack("prepare", home / "scans", "--format", "decathlon", "--home", home)
    data = home / "data" / "decathlon"
    tiny_model(home / "models" / "tiny", open_prepared(data))
    net = f"own('{home}/scans/nets.py:Net')"
    words = "--home", home, "--model", net
    medattack("certify", *words, "--certificate", "expected_dice(draws=50)", "--check", "0", "--out", home / "bounds")
    medattack("poison", data, "relabel(shrink(1))", "--rho", "0.5", "--out", home / "poisoned")
    medattack("attack", *words, "--no-checks", "--save-adversarial", "all", "--out", home / "runs" / "a")
    medattack("prepare", home / "phantom", "--format", "phantom(patients=8)", "--out", home / "synthetic")
    run = write_run(home / "made", dice_of(0, 4))
    medattack("compare", run, "--save-as", "main", "--home", home)
    save_tensors(home / "denoiser" / "denoiser.safetensors", {"a": torch.zeros(1)})
    save_tensors(home / "detectors" / "entropy-abc.safetensors", {"a": torch.zeros(1)})
    (home / "half").mkdir()
    (home / "half" / "options.json").write_text((data / "options.json").read_text())
    (home / "begun").mkdir()
    (home / "begun" / "options.json").write_text(json.dumps({"model": "unet_small"}))
    (home / "readers").mkdir()
    (home / "readers" / "key.json").write_text("{}")
    (home / "page").mkdir()
    (home / "page" / "index.html").write_text("<html>")
    (home / "study").mkdir()
    (home / "study" / "study.yaml").write_text("models: []\n")
    return home


PLACES = {
    "certificates": "bounds",
    "a trained model": "models/tiny",
    "a denoiser": "denoiser",
    "a model whose training was not finished": "begun",
    "a prepared data set": "poisoned",
    "a data set that was not finished": "half",
    "perturbed copies of a run": "",
    "scans of the phantom": "phantom",
    "a baseline": "baselines/main/0001",
    "runs": "runs/a",
    "a study without a finished part": "study",
    "a study with readers": "readers",
    "a page of 'medattack report'": "page",
    "detectors": "detectors",
    "a workspace": "",
}


def place(home: Path, kind: str) -> Path:
    if kind == "perturbed copies of a run":
        return next((home / "runs").rglob("manifest.json")).parent
    if kind == "a workspace":
        empty = home.parent / "empty"
        (empty / "runs").mkdir(parents=True, exist_ok=True)
        return empty
    return home / PLACES[kind]


def test_every_kind_is_told_apart(home: Path) -> None:
    assert set(PLACES) == {kind.name for kind in KINDS}
    kinds = {name: kind_of(place(home, name)) for name in PLACES}
    assert {name: kind and kind.name for name, kind in kinds.items()} == {name: name for name in PLACES}
    assert kind_of(home / "scans") is None


def test_no_kind_says_to_run_the_command_that_was_refused_again() -> None:
    """What reads a folder that was begun is another command than the one that goes on with it."""
    assert [kind.name for kind in KINDS if "the same command" in kind.todo] == []


Command = Callable[[Path], list[object]]
READERS: dict[str, tuple[set[str], Command]] = {
    "report": ({"runs", "a baseline", "certificates"}, lambda folder: ["report", folder, "--out", folder.parent / "x"]),
    "compare": ({"runs", "a baseline"}, lambda folder: ["compare", folder]),
    "compare to": ({"runs", "a baseline"}, lambda folder: ["compare", folder, "--reference", folder]),
    "cite": ({"runs", "a baseline"}, lambda folder: ["cite", folder]),
    "figure": ({"runs", "a baseline"}, lambda folder: ["figure", "curves", folder, "--out", folder.parent / "x.pdf"]),
    "verify": ({"runs", "a baseline"}, lambda folder: ["verify", folder]),
    "detect": ({"runs", "a baseline"}, lambda folder: ["detect", folder]),
    "readers": ({"runs", "a baseline"}, lambda folder: ["readers", folder, "--out", folder.parent / "x"]),
    "images": ({"runs", "a baseline"}, lambda folder: ["evaluate", "--model", "tiny", "--images", folder]),
    "data": ({"a prepared data set"}, lambda folder: ["train", "--data", folder, "--model", "unet_small"]),
    "poison": ({"a prepared data set"}, lambda folder: ["poison", folder, "relabel", "--out", folder.parent / "x"]),
    "audit": ({"a prepared data set"}, lambda folder: ["audit", folder, "--model", "tiny"]),
    "leaderboard": (set(), lambda folder: ["leaderboard", folder]),
    "model": ({"a trained model"}, lambda folder: ["attack", "--model", folder]),
    "screen": (set(), lambda folder: ["screen", folder, "--detector", folder, "--model", "tiny"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_calls_a_folder_of_another_kind_by_its_name(home: Path, reader: str) -> None:
    read, command = READERS[reader]
    with_home = [] if reader in ("cite", "poison", "leaderboard") else ["--home", home]
    for kind in KINDS:
        if kind.name in read:
            continue
        words = command(place(home, kind.name))
        message = " ".join(medattack(*words, *with_home, code=2).stderr.split())
        assert f"got {kind.name}; {kind.todo}" in message, message


def test_runs_are_found_in_a_workspace_that_has_certificates(home: Path) -> None:
    assert "mean" in medattack("compare", home, "--home", home).stdout
