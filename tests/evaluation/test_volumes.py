"""A 3-D model is trained, attacked, scored, stored and verified on whole scans; a 2-D one on their slices."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command import medattack

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.costs import counting, estimates
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.runs.chunks import chunks
from medseg_attack.runs.reading import read_runs
from medseg_attack.training import augment
from medseg_attack.training.options import Options, resolve
from medseg_attack.types import Batch

NET = """
import torch
from torch import nn

class Net(nn.Module):
    '''In plane alone, so that it is the same network in 2-D and in 3-D.'''
    def __init__(self, dims):
        super().__init__()
        self.dims = dims
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
    def forward(self, x):
        if self.dims == 3:
            b, c, d = x.shape[:3]
            x = x.transpose(1, 2).flatten(0, 1)
        x = self.last(torch.tanh(8 * self.first(x)))
        return x.unflatten(0, (b, d)).transpose(1, 2) if self.dims == 3 else x

def flat(): return Net(2)
def cube(): return Net(3)
"""
WINDOW = "window=(3, 12, 14)"  # the whole of a slice, so that windows change nothing in plane


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of five patients, 4 to 6 slices of 14 x 12 at 1.5 x 1.5 x 4 mm, two organs; and net.py."""
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(1)
    for patient in range(5):
        grid = (14, 12, 4 + patient % 3)
        labels = np.zeros(grid, np.uint8)
        labels[3:8, 3:7, 1:3], labels[8:12, 5:10, 2:] = 1, 2
        stored = (200 + 150 * labels + rng.integers(-60, 60, grid)).astype(np.int16)
        for folder, array in (("imagesTr", stored), ("labelsTr", labels)):
            (root / "scans" / folder).mkdir(parents=True, exist_ok=True)
            file = nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 4, 1]))
            nibabel.save(file, root / "scans" / folder / f"p{patient}.nii.gz")
    (root / "net.py").write_text(NET)
    medattack(
        "prepare", root / "scans", "--format", "decathlon", "--test", "0.4", "--folds", "2", "--out", root / "data"
    )
    return root


def own(place: Path, name: str, *options: str) -> str:
    return f"own({', '.join([repr(f'{place}/net.py:{name}'), *options])})"


# cases


@pytest.fixture
def data(place: Path) -> Prepared:
    return open_prepared(place / "data")


def test_a_scan_is_the_stack_of_its_slices(data: Prepared) -> None:
    (scan,) = [ref for ref in data.refs("all", dims=3) if ref.volume == "p1"]
    slices = sorted((ref for ref in data.refs("all") if ref.volume == "p1"), key=lambda ref: ref.index or 0)
    case, parts = data.read(scan), [data.read(ref) for ref in slices]
    assert (case.id, case.volume, case.stack) == ("p1", "p1", None)
    assert scan.shape == case.image.shape[1:] == case.target.shape[1:]
    assert case.spacing_mm == (4.0, 1.5, 1.5)
    assert case.window == parts[0].window
    assert torch.equal(case.image, torch.stack([part.image for part in parts], 1))
    assert torch.equal(case.target, torch.stack([part.target for part in parts], 1))
    assert case.storage is not None
    assert torch.equal(case.storage.stored, torch.stack([p.storage.stored for p in parts], 1))  # type: ignore[union-attr]
    assert data.level(scan) == data.level(slices[0])


def test_splits_are_those_of_slices(data: Prepared) -> None:
    for split in ("train", "val", "test", "all"):
        assert {r.volume for r in data.refs(split, dims=3)} == {r.volume for r in data.refs(split)}  # type: ignore[arg-type]


def test_chunks_count_slices(data: Prepared) -> None:
    refs = data.refs("all", dims=3)
    assert [sum(r.shape[0] for r in chunk) for chunk in chunks(refs)] == [4 + 4, 5 + 5, 6]
    deep = [type(refs[0])(f"v{i}", f"v{i}", "p", (20, 9, 9), None) for i in range(3)]
    assert [len(chunk) for chunk in chunks(deep)] == [1, 1, 1]


def test_windows_of_single_slices_are_refused_in_a_volume(place: Path, tmp_path: Path) -> None:
    medattack("prepare", place / "scans", "--format", "decathlon", "--window", "slice_max", "--out", tmp_path / "data")
    data = open_prepared(tmp_path / "data")
    with pytest.raises(InputError, match="expected one intensity window for all slices of p0"):
        data.read(data.refs("all", dims=3)[0])
    output = medattack(
        "attack", "--data", tmp_path / "data", "-m", own(place, "cube", "dims=3"), "--out", tmp_path / "runs", code=2
    )
    assert "expected one intensity window" in output.output
    assert not (tmp_path / "runs").exists()


# the whole way


@pytest.fixture(scope="module")
def study(place: Path) -> Path:
    """The same network as one of slices and as one of scans, in one study."""
    medattack(
        "attack",
        "--data",
        place / "data",
        "-m",
        own(place, "flat"),
        "-m",
        own(place, "cube", "dims=3", WINDOW),
        "-a",
        "clean",
        "-a",
        "fgsm",
        "-a",
        "pgd(steps=2)",
        "--eps",
        "20raw",
        "--metric",
        "hd95_mm",
        "--no-checks",
        "--save-adversarial",
        "all",
        "--out",
        place / "runs",
    )
    return place / "runs"


def by_scan(runs: Path, attack: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the 2-D and of the 3-D run, added up by scan."""
    rows = read_runs([runs])
    rows = rows[rows["attack"].str.startswith(attack)]
    sums = ["n_target", "n_clean", "hit_clean", "n_adv", "hit_adv", "z_clean", "y_clean", "x_clean"]
    firsts = ["hd95_mm_clean", "z_mm", "y_mm", "x_mm"]
    summaries = []
    for spec in ("flat", "cube"):
        model_rows = rows[rows["model"].str.contains(f"net.py:{spec}", regex=False)]
        groups = model_rows.groupby(["volume", "cls"])
        summaries.append(pd.concat([groups[sums].sum(), groups[firsts].first()], axis=1))
    return summaries[0], summaries[1]


def test_slices_and_scans_are_scored_alike(study: Path) -> None:
    """Counts, centroids, distances and voxel sizes of the clean predictions are the same to the last pixel."""
    slices, scans = by_scan(study, "clean")
    assert len(scans) == 2 * 2
    assert (slices["n_clean"] > 0).any()
    pd.testing.assert_frame_equal(slices, scans)


def test_an_attack_on_a_scan_has_one_row_per_organ(study: Path) -> None:
    rows = read_runs([study])
    scans = rows[rows["model"].str.contains("cube")]
    assert (scans["case"] == scans["volume"]).all()
    assert scans.groupby("run").size().unique().tolist() == [2 * 2]
    pgd = scans[scans["attack"].str.startswith("pgd")]
    assert (pgd["hit_adv"].sum()) < pgd["hit_clean"].sum()
    assert (pgd["linf"] > 0).all()
    assert (pgd["linf"] <= pgd["budget"] * (1 + 1e-6)).all()


def test_a_stored_scan_is_verified_from_disk(study: Path, place: Path) -> None:
    report = json.loads(medattack("verify", study, "--json", "--trust", "--home", place).stdout)
    assert len(report) == 8
    assert all(one["verified"] for one in report), report
    copy = min(study.glob("*cube*/*pgd*/adversarial/imagesTr/p*.nii.gz"))
    before = np.asarray(nibabel.load(place / "scans" / "imagesTr" / copy.name).dataobj)
    after = np.asarray(nibabel.load(copy).dataobj)
    assert after.dtype == before.dtype
    change = np.abs(after.astype(int) - before)
    assert 0 < change.max() <= 20
    assert (change.max((0, 1)) > 0).all()  # every slice


def test_one_changed_voxel_is_noticed(study: Path, place: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(study, tmp_path / "runs")
    (copy, *_) = sorted((tmp_path / "runs").glob("*cube*/*fgsm*/adversarial/imagesTr/p*.nii.gz"))
    file = nibabel.load(copy)
    stored = np.asarray(file.dataobj).copy()
    stored[5, 5, 1] += 100
    nibabel.save(nibabel.Nifti1Image(stored, file.affine, file.header), copy)
    output = medattack("verify", tmp_path / "runs", "--trust", "--home", tmp_path, code=1).output
    assert "more than its budget" in output


def test_worst_stores_scans_whole(place: Path, tmp_path: Path) -> None:
    medattack(
        "attack",
        "--data",
        place / "data",
        "-m",
        own(place, "cube", "dims=3", WINDOW),
        "-a",
        "fgsm",
        "--eps",
        "20raw",
        "--no-control",
        "--no-checks",
        "--save-adversarial",
        "worst:1",
        "--out",
        tmp_path / "runs",
    )
    assert len(list(tmp_path.rglob("adversarial/imagesTr/*.nii.gz"))) == 1
    medattack("verify", tmp_path / "runs", "--trust", "--home", tmp_path)


def test_a_plan_counts_scans(place: Path, tmp_path: Path) -> None:
    output = medattack(
        "attack",
        "--data",
        place / "data",
        "-m",
        own(place, "cube", "dims=3"),
        "-a",
        "fgsm",
        "--eps",
        "0.01",
        "--no-control",
        "--plan",
        "--json",
        "--out",
        tmp_path / "runs",
    )
    assert json.loads(output.stdout)["cases"] == 2
    assert not (tmp_path / "runs").exists()


def test_the_memory_of_a_plan_is_that_of_a_few_steps_on_a_whole_scan(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked = []

    def recorded(model: object, batches: list[Batch], attacks: list[PGD], **options: object) -> object:
        attacked.append((attacks[0].steps, batches[0].image.shape[2:].numel()))
        return attack_chunk(model, batches, attacks, **options)  # type: ignore[arg-type]

    for module in (counting, estimates):
        monkeypatch.setattr(module, "attack_chunk", recorded)
    network = own(place, "cube", "dims=3")
    words = ["attack", "--data", place / "data", "-m", network, "-a", "pgd(steps=9)", "--eps", "0.01", "--no-control"]
    medattack(*words, "--plan", "--out", tmp_path / "runs")
    sizes = {prod(ref.shape) for ref in open_prepared(place / "data").refs("test", dims=3)}
    assert [steps for steps, _ in attacked] == [9, 2]  # passes are counted of all steps
    assert attacked[1][1] in sizes


@pytest.mark.parametrize(
    "attack", ["pgd(objective=toward(bce, another_patient), steps=3)", "bpda(attack=pgd(steps=3))", "advgan(steps=1)"]
)
def test_a_plan_runs_attacks_on_scans_that_need_more_than_the_scan(place: Path, tmp_path: Path, attack: str) -> None:
    network = own(place, "cube", "dims=3")
    words = ["attack", "--data", place / "data", "-m", network, "-a", attack, "--eps", "0.01", "--no-control"]
    output = medattack(*words, "--plan", "--json", "--out", tmp_path / "runs")
    assert json.loads(output.stdout)["memory_mb"] > 0


# training


def test_patches_are_cut_from_scans(data: Prepared) -> None:
    refs = data.refs("train", dims=3)
    cases = augment.TrainingSet(data, refs, (4, 8, 8), seed=0, patches=True)
    assert len(cases) == sum(augment.parts(ref, (4, 8, 8)) for ref in refs) > len(refs)
    image, target = cases[0]
    assert (image.shape, target.shape) == ((1, 4, 8, 8), (3, 4, 8, 8))
    assert (target.sum(0) == 1).all()
    again = augment.TrainingSet(data, refs, (4, 8, 8), seed=0, patches=True)
    assert torch.equal(again[0][0], image)
    assert not torch.equal(cases[1][0], image)  # another patch of the same scan
    large = augment.TrainingSet(data, refs, (8, 16, 16), seed=0, patches=True)
    assert large[0][0].shape == (1, 8, 16, 16)


def test_a_scan_keeps_its_orientation_in_training(data: Prepared) -> None:
    """The organs stand in the same order along every axis, however often a scan is drawn."""
    refs = data.refs("train", dims=3)
    cases = augment.TrainingSet(data, refs, (4, 14, 12), seed=0, patches=True)
    for epoch in range(6):
        cases.epoch = epoch
        _, target = cases[0]
        if target[1].any() and target[2].any():
            low, high = (mask.nonzero().double().mean(0) for mask in target[1:])
            assert (low[1:] != high[1:]).all()
            first = data.read(refs[0]).target
            known = [mask.nonzero().double().mean(0) for mask in first[1:]]
            assert torch.equal((high - low)[1:].sign(), (known[1] - known[0])[1:].sign())


def test_a_3d_model_is_trained_and_attacked_by_its_name(place: Path) -> None:
    spec = "monai(UNet(channels=(4, 8), num_res_units=0), window=(4, 8, 8))"
    medattack("train", "--data", place / "data", "--model", spec, "--epochs", "2", "--out", place / "seg3d")
    card = json.loads((place / "seg3d" / "card.json").read_text())
    assert (card["dims"], card["training_grid"]) == (3, [4, 8, 8])
    output = medattack(
        "attack",
        "--data",
        place / "data",
        "-m",
        place / "seg3d",
        "-a",
        "fgsm",
        "--eps",
        "0.02",
        "--json",
        "--out",
        place / "runs3d",
    )
    assert len(json.loads(output.stdout)["runs"]) == 2
    assert (read_runs([place / "runs3d"])["case"].nunique()) == 2


def test_a_3d_model_without_a_window_cannot_be_trained_on_scans_of_many_shapes(data: Prepared) -> None:
    patients = sorted(data.splits)
    data = replace(data, splits={patient: int(patient == patients[0]) for patient in patients})
    assert len({ref.shape for ref in data.refs("train", 1, dims=3)}) > 1
    with pytest.raises(InputError, match="add window=\\(SLICES, ROWS, COLUMNS\\)"):
        resolve(Options(model="monai(UNet(channels=(4, 8)), dims=3)", fold=1), data)


# doctor


def test_doctor_tells_what_a_model_expects_and_does(place: Path) -> None:
    output = medattack(
        "doctor",
        "--model",
        own(place, "cube", "dims=3", WINDOW, "axes='z-yx'", "normalise='zscore'"),
        "--data",
        place / "data",
        "--json",
        code=1,
    )
    facts = json.loads(output.stdout)
    assert [flag["code"] for flag in facts["flags"]] == ["MA014"]  # its weights are random
    assert facts["expects"] == {
        "cases": "whole scans, as they are, in windows of 3 x 12 x 14 that overlap by 50%, axes z-yx",
        "channels": 1,
        "classes": "background, label_1, label_2",
    }
    assert facts["input"]["scan"] == "0 to 1"
    low, high = map(float, facts["input"]["after its preprocessing"].split(" to "))
    assert low < -1 < 1 < high
    assert facts["two passes agree"] == "yes"
    assert facts["output"]["looks like"] == "logits"
    assert set(facts["clean Dice"]) == {"label_1", "label_2"}
    assert "MB for one case of" in facts["memory of one step"]


@pytest.mark.parametrize(
    ("change", "says", "flag"),
    [
        ("x.softmax(1)", "probabilities; give head='probabilities'", "MA005 invalid"),
        ("x + torch.rand_like(x)", "log-odds differ by", "MA003 upper bound"),
        ("x + x.mean(0, keepdim=True)", "log-odds differ by", "MA004 invalid"),
    ],
)
def test_doctor_sees_what_is_wrong(place: Path, tmp_path: Path, change: str, says: str, flag: str) -> None:
    source = NET.replace(
        "x = self.last(torch.tanh(8 * self.first(x)))",
        f"x = self.last(torch.tanh(8 * self.first(x)))\n        x = {change}",
    )
    (tmp_path / "odd.py").write_text(source)
    output = medattack("doctor", "--model", f"own('{tmp_path}/odd.py:flat')", "--data", place / "data", code=1)
    assert says in " ".join(output.stdout.split())
    assert flag in output.stdout


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("own('none.py:net')", "expected a Python file at none.py"),
        ("own('{place}/net.py:flat', dims=3)", "expected an answer from the network to an input of shape"),
        ("own('{place}/net.py:four')", "expected 'four'"),
        ("own('{place}/net.py:flat', outpt='0')", "own has no field 'outpt'"),
    ],
)
def test_a_model_that_cannot_be_read_is_bad_input(place: Path, tmp_path: Path, spec: str, says: str) -> None:
    model = spec.format(place=place)
    output = medattack("attack", "--data", place / "data", "-m", model, "-o", tmp_path / "runs", code=2).output
    assert says in " ".join(output.split())
    assert "defect" not in output
    assert not (tmp_path / "runs").exists()
