"""A run says how many of its patients its model was trained on, whatever the data set is called."""

import json
from pathlib import Path

import pytest
from helpers.command import medattack

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.models.checkpoints import read_card
from medseg_attack.models.model_ref import resolve
from medseg_attack.storage.json_files import read_json

NET = "unet_small(channels=(4, 8))"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients, prepared twice with other test patients; a network that was trained on the first of them."""
    root = tmp_path_factory.mktemp("trained_on")
    scans = [root / "scans", "--format", "phantom(patients=6, slices=2, side=16)"]
    medattack("prepare", *scans, "--out", root / "data")
    medattack("prepare", *scans, "--test", "0.7", "--out", root / "again")
    words = ["--data", root / "data", "--model", NET, "--epochs", "1", "--device", "cpu"]
    medattack("train", *words, "--out", root / "model")
    return root


def trained_on(root: Path, data: str, model: object, *words: str) -> int:
    name = f"{data}-{len(list(root.iterdir()))}"
    options = ["--attack", "fgsm", "--eps", "0.01", "--no-control", "--no-checks", "--home", root / "home"]
    medattack("attack", "--data", root / data, "--model", model, *options, *words, "--out", root / name)
    (file,) = (root / name).rglob("run.json")
    return int(read_json(file).get("trained_on", 0))


def test_patients_of_the_training_are_counted_in_another_data_set(root: Path) -> None:
    data, again = (open_prepared(root / name) for name in ("data", "again"))
    learned = {ref.group for ref in data.refs("train")}
    shared = learned & {ref.group for ref in again.refs("test")}
    assert shared
    assert trained_on(root, "again", root / "model") == len(shared)
    assert trained_on(root, "data", root / "model") == 0
    assert trained_on(root, "data", root / "model", "--split", "all") == len(learned)


def test_models_around_a_model_and_those_that_begin_with_it_know_its_scans(root: Path) -> None:
    data = open_prepared(root / "data")
    scans = set(read_card(root / "model")["training_scans"])
    assert scans == data.digests(data.refs("train"))
    assert resolve(f"voted({str(root / 'model')!r})", data.task).training_scans == scans
    assert resolve(NET, data.task).training_scans == frozenset()
    words = ["--data", root / "again", "--model", NET, "--epochs", "1", "--device", "cpu", "--init", root / "model"]
    medattack("train", *words, "--out", root / "later")
    again = open_prepared(root / "again")
    assert set(read_card(root / "later")["training_scans"]) == scans | again.digests(again.refs("train"))


def test_certify_says_it_beside_its_bounds(root: Path) -> None:
    n = len({ref.group for ref in open_prepared(root / "data").refs("train")})
    words = ["--data", root / "data", "--model", root / "model", "--certificate", "expected_dice(draws=100)"]
    options = ["--radius", "0.001", "--check", "0", "--split", "all", "--home", root / "home", "--device", "cpu"]
    shown = " ".join(medattack("certify", *words, *options).stdout.split())
    assert f"The model was trained on {n} of the 6 patients" in shown
    assert json.loads(medattack("certify", *words, *options, "--json").stdout)["trained_on"] == n
    assert "was trained on" not in medattack("certify", *words, *options, "--split", "test").stdout
