"""The real nnU-Net v2, trained on hippocampi for minutes: we predict what it predicts, describe and attack it."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers.command import medattack

from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.models.model_ref import resolve
from medseg_attack.models.segmodel import SegModel
from medseg_attack.runs.reading import read_runs
from medseg_attack.types import Case, Setting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed"),
]
DATASET = "Dataset999_Toy"


def prediction(model: SegModel, case: Case) -> Any:
    """The class of each voxel."""
    bound = model.bind(Setting(model.task, (case,)))
    return model.decide(bound(case.image[None]))[0].int().argmax(0).numpy()


TRAIN = """
import json, os, random, sys
import numpy, torch
from pathlib import Path
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_10epochs

if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)
    folder, configuration, spacing, patch = Path(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
    extract_fingerprints([999], num_processes=1, check_dataset_integrity=False)
    plan_experiments([999])
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    own, dims = plans["configurations"][configuration], len(patch)
    own |= {"spacing": spacing, "patch_size": patch, "batch_size": {2: 12, 3: 2}[dims]}
    own["architecture"]["arch_kwargs"] |= {
        "n_stages": 3, "features_per_stage": [8, 16, 32], "kernel_sizes": [[3] * dims] * 3,
        "strides": [[1] * dims, [2] * dims, [2] * dims], "n_conv_per_stage": [2] * 3,
        "n_conv_per_stage_decoder": [2] * 2,
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess([999], configurations=(configuration,), num_processes=(1,))
    dataset = json.loads((folder / "dataset.json").read_text())
    os.environ["nnUNet_n_proc_DA"] = "0"  # patches are drawn here, so that a seed is one
    trainer = nnUNetTrainer_10epochs(plans, configuration, 0, dataset, torch.device("cpu"))
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = {2: 320, 3: 80}[dims], 1
    trainer.run_training()
"""
PREDICT = """
from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder

if __name__ == "__main__":
    predict_entry_point_modelfolder()
"""


class Toy:
    """Nine hippocampi, where nnU-Net keeps its files, and our prepared data of the same scans."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root, self.raw = root, root / "raw" / DATASET
        for kind in ("imagesTr", "labelsTr"):
            (self.raw / kind).mkdir(parents=True)
        for path in sorted((source / "imagesTr").glob("*.nii.gz"))[:9]:
            name = path.name.removesuffix(".nii.gz")
            shutil.copy(path, self.raw / "imagesTr" / f"{name}_0000.nii.gz")
            shutil.copy(source / "labelsTr" / path.name, self.raw / "labelsTr")
        described = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "anterior": 1, "posterior": 2},
            "numTraining": 9,
            "file_ending": ".nii.gz",
        }
        (self.raw / "dataset.json").write_text(json.dumps(described))
        medattack("prepare", self.raw, "--format", "decathlon", "--window", "range", "--out", root / "data")
        self.data: Prepared = open_prepared(root / "data")

    def run(self, script: str, *words: object) -> None:
        path = self.root / "script.py"
        path.write_text(script)
        folders = {f"nnUNet_{kind}": str(self.root / kind) for kind in ("raw", "preprocessed", "results")}
        few = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, path, *map(str, words)], env=os.environ | folders | few, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def train(self, configuration: str, spacing: list[float], patch: list[int]) -> Path:
        folder = self.root / "preprocessed" / DATASET
        self.run(TRAIN, folder, configuration, json.dumps(spacing), json.dumps(patch))
        return self.root / "results" / DATASET / f"nnUNetTrainer_10epochs__nnUNetPlans__{configuration}"

    def predicted(self, folder: Path, names: list[str]) -> list[Array]:
        """nnU-Net's own segmentations, on our grid."""
        source, out = self.root / "in", self.root / "out"
        source.mkdir()
        for name in names:
            shutil.copy(self.raw / "imagesTr" / f"{name}_0000.nii.gz", source)
        words = ["-i", source, "-o", out, "-m", folder, "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1]
        self.run(PREDICT, *words)
        return [self._onto_grid(out / f"{name}.nii.gz", name) for name in names]

    def _onto_grid(self, path: Path, name: str) -> Array:
        lattice = self.data.records[name].lattice
        return lattice.from_file(np.asarray(nibabel.load(path).dataobj))


@pytest.mark.parametrize(
    ("configuration", "spacing", "patch", "least"),
    [("3d_fullres", [1.3, 1.1, 0.9], [24, 32, 40], 0.5), ("2d", [1.1, 0.9], [32, 40], 0.2)],
)
def test_our_model_predicts_what_nnunet_predicts_and_is_attacked(
    configuration: str, spacing: list[float], patch: list[int], least: float, tmp_path: Path, real_data: Any
) -> None:
    toy = Toy(tmp_path, real_data("msd_hippocampus"))
    folder = toy.train(configuration, spacing, patch)
    spec = f"nnunet({str(folder)!r}, fold=0)"
    model = resolve(spec, toy.data.task).load(toy.data.task, "cpu")
    cases = [toy.data.read(ref) for ref in toy.data.refs("all", dims=3)[:3]]
    with torch.no_grad():
        predictions = [prediction(model, case) for case in cases]
    truth = [case.target.int().argmax(0).numpy() for case in cases]
    names = [case.id for case in cases]
    stock = toy.predicted(folder, names)
    dice, stock_dice = mean_dice(predictions, truth), mean_dice(stock, truth)
    differ = [int((a != b).sum()) for a, b in zip(predictions, stock, strict=True)]
    print(f"\n{configuration}: Dice {dice:.5f}, nnU-Net's {stock_dice:.5f}; voxels that differ {differ}")
    assert abs(dice - stock_dice) < 1e-4  # about one voxel: sums in another order, rounded to half, may turn a tie
    assert dice > least  # trained at all: an empty prediction is easily the same
    facts = json.loads(medattack("doctor", "--data", toy.data.root, "--model", spec, "--json").stdout)
    print(facts)
    agrees_with_doctor(facts, model, toy)
    words = ["--data", toy.data.root, "--model", spec, "--split", "test", "--attack", "pgd(steps=3)", "--eps", "8/255"]
    stdout = medattack(
        "attack", *words, "--loss", "soft_dice", "--save-adversarial", "all", "--json", "--out", tmp_path / "runs"
    ).stdout
    flags = {flag["code"] for flag in json.loads(stdout)["flags"]}
    assert flags <= {"MA029"}, flags  # few patients; nothing ails the model or the attack
    runs = sorted((tmp_path / "runs").rglob("run.json"))
    rows = read_runs([path.parent for path in runs])
    hit = (2 * rows["hit_adv"] / (rows["n_adv"] + rows["n_target"])).groupby(rows["attack"]).mean()
    print(hit.to_dict())
    assert hit["pgd(steps=3)"] < hit["noise"] - 0.1
    for path in runs:
        medattack("verify", path.parent)


def agrees_with_doctor(facts: dict[str, Any], model: SegModel, toy: Toy) -> None:
    """What `doctor` says of the model is what the model does."""
    truth, predictions = [], []
    for ref in toy.data.refs("test", dims=3):
        if ref.id in facts["cases"]:
            case = toy.data.read(ref)
            with torch.no_grad():
                predictions.append(prediction(model, case))
            truth.append(case.target.int().argmax(0).numpy())
    assert len(truth) == 1  # scans of several shapes: one at a time
    assert np.mean(list(facts["clean Dice"].values())) == pytest.approx(mean_dice(predictions, truth), abs=1e-6)
    assert facts["two passes agree"] == "yes"
    assert re.fullmatch(r"\d+ MB for one case of \d+ x \d+ x \d+ voxels", facts["memory of one step"])
    assert facts["flags"] == []


def mean_dice(predictions: list[Array], truth: list[Array]) -> float:
    """Over organs and cases."""
    pairs = [(a == k, b == k) for a, b in zip(predictions, truth, strict=True) for k in (1, 2)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))
