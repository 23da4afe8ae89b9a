"""Two modalities in one 4-D file, a 3-D network behind sliding windows: trained, attacked, stored, read again."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers.command import medattack
from monai.inferers import sliding_window_inference

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.models.checkpoints import load, save
from medseg_attack.models.segmodel import SegModel
from medseg_attack.runs.folder import RunFolder

NAMES = ("T1", "FLAIR")
EPS = 16 / 255
WINDOW = "window=(4, 8, 8), overlap=0.5"  # several along every axis of a scan
MODELS = [
    f"monai(SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), {WINDOW})",
    f"monai(UNet(channels=(4, 8), num_res_units=1), {WINDOW}, mirror=(0,))",
]


def write_scan(root: Path, number: int, rng: np.random.Generator) -> None:
    """14 x 12 x 6 or 7 voxels; one organ is bright in T1, the other in FLAIR, whose values are ten times those."""
    labels = np.zeros((14, 12, 6 + number % 2), np.uint8)
    labels[2:7, 2:7, 1:4], labels[7:12, 5:10, 2:6] = 1, 2
    t1 = 100 + 120 * (labels == 1) + rng.integers(-20, 20, labels.shape)
    flair = 1000 + 1500 * (labels == 2) + rng.integers(-200, 200, labels.shape)
    for folder, array in (("imagesTr", np.stack([t1, flair], -1).astype(np.int16)), ("labelsTr", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 3, 1])), root / folder / f"brain_{number}.nii.gz")


def describe(root: Path, names: Sequence[str]) -> None:
    described = {"modality": dict(enumerate(names)), "labels": {"0": "background", "1": "core", "2": "oedema"}}
    (root / "dataset.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` and `data`, of six patients; two for the test."""
    root, rng = tmp_path_factory.mktemp("modalities"), np.random.default_rng(3)
    for number in range(6):
        write_scan(root / "raw", number, rng)
    described = {"modality": dict(enumerate(NAMES)), "labels": {"0": "background", "1": "core", "2": "oedema"}}
    (root / "raw" / "dataset.json").write_text(json.dumps(described))
    medattack(
        "prepare", root / "raw", "--format", "decathlon", "--test", "0.34", "--folds", "2", "--out", root / "data"
    )
    return root


@pytest.fixture(scope="module", params=MODELS, ids=["SegResNet", "UNet"])
def study(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, drawn at random, and `runs`: its attacks on the test scans, stored."""
    root, data = tmp_path_factory.mktemp("study"), open_prepared(place / "data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build(request.param, "model")(data.task)
    save(root / "model", model, {"label": "tiny", "spec": request.param})
    medattack(
        "attack",
        "--data",
        place / "data",
        "-m",
        root / "model",
        "-a",
        "pgd(steps=4)",
        "--loss",
        "soft_dice",
        "--eps",
        EPS,
        "--save-adversarial",
        "all",
        "--no-checks",
        "--out",
        root / "runs",
    )
    return root


def run_of(study: Path, attack: str) -> Path:
    return next(file.parent for file in study.rglob("run.json") if attack in file.parent.name)


def stored(path: Path, data: Prepared) -> torch.Tensor:
    """A 4-D file as (channels, slices, rows, columns) in [0, 1] of each channel's window."""
    record = data.records[path.name.removesuffix(".nii.gz")]
    lattice, (low, high) = record.lattice, np.array(record.windows)[0]
    values = np.asarray(nibabel.load(path).dataobj, np.float64)
    channels = [(lattice.from_file(values[..., n]) - low[n]) / (high[n] - low[n]) for n in range(2)]
    return torch.from_numpy(np.stack(channels).clip(0, 1)).float()


def test_verify_reads_them_again(study: Path) -> None:
    results = json.loads(medattack("verify", study / "runs", "--json").stdout)
    assert len(results) == 2  # pgd and noise
    assert all(one["verified"] for one in results), results


def predicted(model: SegModel, image: torch.Tensor) -> torch.Tensor:
    """By MONAI's inferer, of whose windows the mirrored copies are taken that the model takes."""
    flips = [[axis + 2 for axis in flip] for flip in model.net.flips]

    def averaged(window: torch.Tensor) -> torch.Tensor:
        return torch.stack([model.net.net(window.flip(axes)).flip(axes) for axes in flips]).mean(0)

    with torch.no_grad():
        logits = sliding_window_inference(image[None], (4, 8, 8), 1, averaged, overlap=0.5, mode="gaussian")
    return logits[0].argmax(0)


def test_rows_are_what_monais_inferer_makes_of_the_files(study: Path, place: Path) -> None:
    data, model, run = open_prepared(place / "data"), load(study / "model"), run_of(study, "pgd")
    rows = RunFolder(run).rows().set_index(["case", "cls"])
    assert len(rows) == 4  # two scans, two organs
    for ref in data.refs("test", dims=3):
        case, name = data.read(ref), f"{ref.id}.nii.gz"
        clean = stored(place / "raw" / "imagesTr" / name, data)
        torch.testing.assert_close(clean, case.image, rtol=0, atol=1e-6)
        attacked = stored(run / "adversarial" / "imagesTr" / name, data)
        for image, hit, n in ((clean, "hit_clean", "n_clean"), (attacked, "hit_adv", "n_adv")):
            labels = predicted(model, image)
            for k in data.task.scored:
                row = rows.loc[(ref.id, data.task.classes[k])]
                assert (row[hit], row[n]) == (((labels == k) & case.target[k]).sum(), (labels == k).sum())


def test_each_modality_is_changed_by_its_own_budget(study: Path, place: Path) -> None:
    data = open_prepared(place / "data")
    for path in sorted((run_of(study, "pgd") / "adversarial" / "imagesTr").glob("*.nii.gz")):
        before, after = nibabel.load(place / "raw" / "imagesTr" / path.name), nibabel.load(path)
        assert (after.shape, after.get_data_dtype()) == (before.shape, before.get_data_dtype())
        assert after.ndim == 4
        assert np.array_equal(after.affine, before.affine)
        change = np.abs(np.asarray(after.dataobj, float) - np.asarray(before.dataobj, float)).max((0, 1, 2))
        low, high = np.array(data.records[path.name.removesuffix(".nii.gz")].windows)[0]
        assert (change <= EPS * (high - low)).all()
        assert (change > EPS * (high - low) - 1).all()  # and used up, to a whole level


def test_a_gradient_through_windows_hurts_more_than_noise(study: Path) -> None:
    dice = []
    for attack in ("pgd", "noise"):
        rows = RunFolder(run_of(study, attack)).rows()
        dice.append((2 * rows["hit_adv"].sum() / (rows["n_adv"] + rows["n_target"]).sum()).item())
    assert dice[0] < 0.85 * dice[1]


def test_modalities_in_another_order_are_refused(study: Path, place: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for number in range(3):
        write_scan(root, number, np.random.default_rng(number))
    describe(root, NAMES[::-1])
    medattack("prepare", root, "--format", "decathlon", "--out", tmp_path / "data")
    said = medattack(
        "attack",
        "--data",
        tmp_path / "data",
        "-m",
        study / "model",
        "-a",
        "fgsm",
        "--eps",
        "0.01",
        "--out",
        tmp_path / "runs",
        code=2,
    ).stderr
    assert "FLAIR" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_both_modalities_are_trained_on_in_patches(place: Path, tmp_path: Path) -> None:
    medattack(
        "train",
        "--data",
        place / "data",
        "--model",
        MODELS[1],
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--out",
        tmp_path / "model",
    )
    model = load(tmp_path / "model")
    assert (model.task.channel_names, model.dims, model.window) == (NAMES, 3, (4, 8, 8))
    first = next(weight for weight in model.parameters() if weight.ndim == 5)
    assert first.shape[1] == 2
