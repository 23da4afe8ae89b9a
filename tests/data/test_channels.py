"""Several channels on the whole way: files, windows, levels, networks, attacks, and files again."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers.command import medattack
from helpers.scans import NAMES, SCALES, channels, set_scale, write_channels, write_pair

from medseg_attack import registry
from medseg_attack.checks.model.images import check_window
from medseg_attack.checks.model.scene import Scene
from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.data.prepared.windows import Fixed
from medseg_attack.data.prepared.writing import Options, prepare
from medseg_attack.errors import InputError
from medseg_attack.evaluation.crafting import case_budgets
from medseg_attack.models.checkpoints import load, save
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.noise import noise_of
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.runs.folder import RunFolder
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.budgets import parse_budget
from medseg_attack.types import Batch, Case, Fittable, Storage, Task, Window

ABSENT = ("replay", "transfer", "worst_prompt")  # need a run, another model, a promptable one
LEARNS = [name for name in registry.names("attack") if isinstance(registry.build(name, "attack"), Fittable)]


def prepared(root: Path, out: Path, options: Options | None = None) -> Prepared:
    list(prepare(open_source("decathlon", root), out, options or Options()))
    return open_prepared(out)


@pytest.mark.parametrize("together", [True, False])
def test_a_case_has_every_channel_in_its_own_window(tmp_path: Path, together: bool) -> None:
    data = prepared(write_channels(tmp_path / "raw", together=together), tmp_path / "out")
    assert (data.task.channels, data.task.channel_names) == (2, NAMES)
    case = data.read(next(ref for ref in data.refs("all") if ref.id == "brain_1_slice_002"))
    assert case.image.shape == (2, 10, 8)
    assert case.storage is not None
    lattice = data.records["brain_1"].lattice
    assert lattice is not None
    both = case.storage.stored.numpy()
    for channel, (slope, inter) in enumerate([(1.0, 0.0)] * 2 if together else SCALES):
        native = channels(1)[..., channel] * slope + inter
        low, high = np.percentile(native, (0.5, 99.5))
        assert (case.window.low[channel], case.window.high[channel]) == (low, high)  # type: ignore[index]
        assert np.array_equal(both[channel], lattice.from_file(channels(1)[..., channel])[2])
        expected = np.clip((both[channel] * slope + inter - low) / (high - low), 0, 1).astype(np.float32)
        assert np.array_equal(case.image[channel].numpy(), expected)


def test_channels_that_share_window_and_scale_are_told_by_one_number(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=True)
    case = (data := prepared(root, tmp_path / "out", Options(window=Fixed(0, 1000)))).read(data.refs("all")[0])
    assert (case.window.low, case.window.high, case.window.width) == (0, 1000, 1000)
    assert case.storage is not None
    assert case.storage.slope == 1.0
    assert data.level(data.refs("all")[0]) == 1 / 1000


def test_another_size_resamples_each_channel(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=True)
    case = (data := prepared(root, tmp_path / "out", Options(size=(5, 4)))).read(data.refs("all")[0])
    assert case.image.shape == (2, 5, 4)
    assert case.storage is not None
    first, second = case.storage.stored
    assert first.max() < 400
    assert second.min() > 1000


def brain(number: int, window: Window, slope: Any = (0.5, 2.0)) -> Case:
    stored = torch.from_numpy(np.moveaxis(channels(number)[:, :, 0], -1, 0).copy())
    storage = Storage(stored, slope, (-20.0, 100.0))
    levels = StoredValues.of(
        [
            Case(
                "c",
                "v",
                "g",
                torch.zeros(2, 8, 10),
                torch.zeros(1, 8, 10, dtype=torch.bool),
                (1.0, 1.0),
                window,
                storage=storage,
            )
        ],
        "cpu",
    )
    assert levels is not None
    image = levels.image(levels.stored, torch.zeros(1, 2, 8, 10))[0]
    return Case("c", "v", "g", image, image[:1] > 0.5, (1.0, 1.0), window, storage=storage)


def test_a_change_is_whole_levels_of_each_channel() -> None:
    """A stored value is 0.5/100 of the first window, 2/250 of the second: eps 0.02 is 4 of the one, 2 of the other."""
    one = brain(0, Window((0.0, 2100.0), (100.0, 2350.0)))
    levels, image = StoredValues.of([one], "cpu"), one.image[None]
    assert levels is not None
    change = levels.image(levels.stored + 1, image) - levels.image(levels.stored, image)
    within = ~levels.outside & (image < 0.9)
    for channel, one_value in enumerate((0.005, 0.008)):
        assert (change[0, channel][within[0, channel]] - one_value).abs().max() < 1e-6
    ball = Linf(0.02)
    moved = levels.nearest(ball.project(image + 1, image), image, ball) - levels.stored
    inside = ~levels.outside & (image < 0.97)
    assert (moved[0, 0][inside[0, 0]] == 4).all()
    assert (moved[0, 1][inside[0, 1]] == 2).all()
    assert levels.outside[0, 0].any()
    assert (moved[levels.outside] == 0).all()


@pytest.mark.parametrize("unit", ["5HU", "5raw", "1sigma"])
def test_a_unit_that_channels_do_not_share_is_refused(unit: str) -> None:
    one = brain(0, Window((0.0, 2100.0), (100.0, 2350.0), "HU"))
    with pytest.raises(InputError, match="fraction of each channel's own window"):
        case_budgets([one], noise_of(one.image[None]), parse_budget(unit))
    assert [own.budget for own in case_budgets([one], noise_of(one.image[None]), parse_budget("1%window"))] == [0.01]
    (size,) = case_budgets([one], noise_of(one.image[None]), None, 0.01)
    assert np.isnan([size.width, size.level]).all()


def test_a_unit_that_channels_share_is_taken() -> None:
    """Two windows of one width: what 5 HU is of the one it is of the other; stored values have two scales here."""
    one = brain(0, Window((0.0, 2100.0), (250.0, 2350.0), "HU"))
    assert [own.budget for own in case_budgets([one], noise_of(one.image[None]), parse_budget("5HU"))] == [0.02]
    with pytest.raises(InputError, match="one scale"):
        case_budgets([one], noise_of(one.image[None]), parse_budget("5raw"))


def test_noise_is_of_all_channels() -> None:
    draw = torch.Generator().manual_seed(0)
    image = 0.5 + torch.tensor([0.01, 0.03]).view(1, 2, 1, 1) * torch.randn(1, 2, 64, 64, generator=draw)
    one = Case("c", "v", "g", image[0], image[0, :1] > 1, (1.0, 1.0), Window(0, 100))
    assert 0.013 < case_budgets([one], noise_of(image), None)[0].noise < 0.027


def test_a_network_of_the_scan_s_channels_sees_them_and_no_other_number() -> None:
    task = Task("t", ("a",), channels=2)
    seen: list[torch.Tensor] = []

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x[:, :1]

    model, image = SegModel(Net(), task), torch.rand(1, 2, 4, 4)
    model(image)
    assert torch.equal(seen[0], image)
    for n in (1, 3):
        with pytest.raises(InputError, match=f"an image of 2 channels for this network, got {n}"):
            model(torch.rand(1, n, 4, 4))


@pytest.mark.parametrize(("n", "inputs"), [(1, 3), (2, 2), (3, 3), (4, 4)])
def test_networks_of_the_library_take_as_many_channels_as_the_scan(n: int, inputs: int) -> None:
    model = registry.build("smp(encoder='resnet18')", "model")(Task("t", ("a",), channels=n)).eval()
    assert model.in_channels == inputs
    assert model(torch.rand(1, n, 32, 32)).shape == (1, 1, 32, 32)


def test_a_checkpoint_of_other_channels_is_refused(tmp_path: Path) -> None:
    task = Task("t", ("a",), channels=2, channel_names=("T1", "FLAIR"))
    save(
        tmp_path,
        registry.build("unet_small(channels=(4, 8))", "model")(task),
        {"label": "m", "spec": "unet_small(channels=(4, 8))"},
    )
    assert load(tmp_path, task).task == task
    with pytest.raises(InputError, match=r"FLAIR.*'T2'"):
        load(tmp_path, Task("t", ("a",), channels=2, channel_names=("T1", "T2")))


def test_wang2024_perturbs_the_channels_that_there_are() -> None:
    task = Task("t", ("a",), channels=2)
    model = SegModel(torch.nn.Conv2d(2, 1, 1), task)
    image = torch.rand(2, 2, 6, 6)
    result = registry.build("fgsm_wang2024", "attack")(model, image, torch.rand(2, 1, 6, 6) > 0.5, [0, 1])
    assert result.image.shape == image.shape
    assert (result.image != image).any()


def test_organ_pixels_at_the_window_s_ends_are_counted_by_channel() -> None:
    """A pixel that is white in one of two channels counts half."""
    image = torch.full((1, 2, 4, 4), 0.5)
    image[0, 0, :2, :2] = 1.0
    target = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    target[0, 0, :2, :4] = True
    one = Case("c", "v", "g", image[0], target[0], (1.0, 1.0), Window(0, 1))
    model = SegModel(torch.nn.Conv2d(2, 1, 1), Task("t", ("a",), channels=2))
    (finding,) = check_window(Scene(model, Batch.of([one]), (), torch.zeros(1, 1, 4, 4)))
    assert "25%" in finding.numbers


@pytest.fixture(scope="module", params=[True, False], ids=["one file", "a file each"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on two channels, its scans stored; beside it `raw`, `data` and `model`."""
    root = tmp_path_factory.mktemp("channels")
    raw = write_channels(root / "raw", together=request.param)
    medattack("prepare", raw, "--format", "decathlon", "--out", root / "data")
    data = open_prepared(root / "data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build("unet_small(channels=(4, 8))", "model")(data.task)
    save(root / "model", model, {"label": "tiny", "spec": "unet_small(channels=(4, 8))"})
    medattack(
        "attack",
        "--data",
        root / "data",
        "-m",
        root / "model",
        "--attack",
        "pgd",
        "--steps",
        "3",
        "--eps",
        "8/255",
        "--split",
        "all",
        "--save-adversarial",
        "all",
        "--no-checks",
        "--out",
        root / "runs",
    )
    return root


def attacked(study: Path) -> Path:
    return next(file.parent for file in study.rglob("run.json") if "pgd" in file.parent.name)


def test_what_was_scored_is_on_the_disk(study: Path) -> None:
    results = json.loads(medattack("verify", study / "runs", "--json").stdout)
    assert results
    assert all(one["verified"] for one in results), results


def test_every_channel_is_changed_inside_its_own_budget_and_file(study: Path) -> None:
    data = open_prepared(study / "data")
    paths = sorted((attacked(study) / "adversarial" / "imagesTr").glob("*.nii.gz"))
    assert len(paths) == sum(record.n_images for record in data.records.values())
    for path in paths:
        before, after = nibabel.load(study / "raw" / "imagesTr" / path.name), nibabel.load(path)
        assert (after.shape, after.get_data_dtype()) == (before.shape, before.get_data_dtype())
        assert np.array_equal(after.affine, before.affine)
        change = np.abs(np.asarray(after.dataobj, dtype=float) - np.asarray(before.dataobj, dtype=float))
        windows = np.array(data.records[path.name[:7]].windows)
        own = range(2) if change.ndim == 4 else [int(path.name[8:12])]
        for channel, moved in zip(own, np.moveaxis(np.atleast_3d(change).reshape(8, 10, 5, -1), -1, 0), strict=True):
            low, high = windows[0, :, channel]
            level = 1.0 if change.ndim == 4 else SCALES[channel][0]
            most = 8 / 255 * (high - low)
            assert most - level < moved.max() <= most


def test_a_tampered_channel_is_found(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "runs", tmp_path / "runs")
    path = sorted(next(tmp_path.rglob("run.json")).parent.glob("adversarial/imagesTr/*.nii.gz"))[-1]
    image = nibabel.load(path)
    stored = np.asarray(image.dataobj.get_unscaled()).copy()
    stored.reshape(-1)[:] += 90
    slope, inter = image.dataobj.slope, image.dataobj.inter
    nibabel.save(nibabel.Nifti1Image(stored, image.affine), path)
    set_scale(path, slope, inter)
    said = medattack("verify", tmp_path / "runs", code=1).output
    assert "sha256" in said
    assert "more than its budget" in " ".join(said.split())


def test_the_worst_scans_are_stored_with_all_their_channels(study: Path, tmp_path: Path) -> None:
    medattack(
        "attack",
        "--data",
        study / "data",
        "-m",
        study / "model",
        "--attack",
        "fgsm",
        "--eps",
        "8/255",
        "--split",
        "all",
        "--save-adversarial",
        "worst:2",
        "--no-checks",
        "--out",
        tmp_path / "runs",
    )
    run = next(file.parent for file in tmp_path.rglob("run.json") if "fgsm" in file.parent.name)
    files = json.loads((run / "adversarial" / "manifest.json").read_text())["files"]
    assert len({file["scan"] for file in files}) == 2
    assert sorted(channel for file in files for channel in file["channels"]) == [0, 0, 1, 1]
    assert all(one["verified"] for one in json.loads(medattack("verify", tmp_path / "runs", "--json").stdout))


def test_rows_say_that_channels_differ(study: Path) -> None:
    rows = RunFolder(attacked(study)).rows()
    assert rows["width"].isna().all()
    assert (rows["linf"] <= 8 / 255 * (1 + 1e-6)).all()


def test_two_channels_are_trained_on(study: Path, tmp_path: Path) -> None:
    medattack(
        "train",
        "--data",
        study / "data",
        "--model",
        "unet_small(channels=(4, 8))",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        tmp_path / "model",
    )
    assert load(tmp_path / "model").task.channel_names == NAMES


def refused(root: Path) -> str:
    result = medattack("prepare", root, "--format", "decathlon", "--out", root.parent / "out", code=2)
    assert not (root.parent / "out").exists()
    return " ".join(result.stderr.split())


def test_a_case_without_its_second_channel_is_told(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=False)
    (root / "imagesTr" / "brain_2_0001.nii.gz").unlink()
    assert "expected 2 files for brain_2 as for brain_0, one per channel, got 1" in refused(root)


def test_a_case_without_its_first_channel_is_told(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=False)
    (root / "imagesTr" / "brain_2_0000.nii.gz").unlink()
    assert "numbered from 0000 without gaps" in (said := refused(root))
    assert "brain_2_0001" in said


def test_a_case_of_one_channel_among_those_of_two_is_told(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=True)
    write_pair(root / "imagesTr" / "brain_3.nii.gz", root / "labelsTr" / "brain_3.nii.gz")
    assert "expected 2 channels, as the data set has, in " in (said := refused(root))
    assert "brain_3.nii.gz, got 1" in said


def test_other_channel_names_than_channels_are_told(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=False)
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}))
    assert "expected 3 channels as named in" in (said := refused(root))
    assert "(T1, T2, FLAIR), got 2" in said
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"T1": 0}}))
    assert "expected channels such as {'0': 'T1'}" in refused(root)


def test_channels_of_two_types_or_places_are_told(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=False)
    second, mask = root / "imagesTr" / "brain_1_0001.nii.gz", root / "labelsTr" / "brain_1.nii.gz"
    write_pair(second, mask, image=channels()[..., 0].astype(np.float32))
    assert "expected channels of one stored type, got int16" in refused(root)
    shifted = np.diag((1.0, 1.0, 4.0, 1.0))
    shifted[0, 3] = 7
    write_pair(second, mask, image=channels()[..., 0], affine=shifted, mask_affine=np.diag((1.0, 1.0, 4.0, 1.0)))
    assert "expected channels in one place, got affines that are 7 mm apart" in refused(root)


def test_an_empty_channel_is_told_where_it_has_no_window(tmp_path: Path) -> None:
    root = write_channels(tmp_path / "raw", together=True)
    image = channels(3)
    image[..., 1] = 0
    write_pair(
        root / "imagesTr" / "brain_3.nii.gz",
        root / "labelsTr" / "brain_3.nii.gz",
        image=image,
        mask=np.zeros((8, 10, 5)),
    )
    assert "got one in channel 1 of" in refused(root)


@pytest.mark.parametrize("name", [name for name in registry.names("attack") if name not in (*ABSENT, *LEARNS)])
def test_every_attack_takes_several_channels(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 2, 3, padding=1)
        )
    model = SegModel(net, Task("t", ("a", "b"), channels=2)).double()
    draw = torch.Generator().manual_seed(5)
    image = torch.rand(2, 2, 12, 10, generator=draw, dtype=torch.float64)
    target = torch.rand(2, 2, 12, 10, generator=draw) < 0.4
    attack = registry.with_eps(registry.build(name, "attack", {"queries": 50, "steps": 3}), 8 / 255)
    with frozen(model):
        result = attack(model, image, target, [1, 2])
    assert result.image.shape == image.shape
    assert (result.size <= attack.ball.limit + 1e-12).all()
    if isinstance(attack.ball, Linf | L2):
        assert (attack.ball.size(result.image, image) <= attack.ball.limit + 1e-12).all()
    assert ((result.image >= 0) & (result.image <= 1)).all()
