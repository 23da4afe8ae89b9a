"""nnU-Net v2 as a model: its resampling, windows and normalisation, and a results folder that is written here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.nnunet_folder import TASK, edited, read, write, write_folder
from helpers.scans import write_pair
from scipy import ndimage
from torch import Tensor, nn

from medseg_attack.checks.model_profile import profile
from medseg_attack.data.datasets.source import open_source
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.nnunet.predictor import Predictor, importance, normalised, windows
from medseg_attack.models.nnunet.resampling import Resampling, coarse_axis, resampled, resampled_shape
from medseg_attack.models.nnunet.results_folder import Plan, Scheme
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import build
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Case, Setting, Storage, Window

CUBIC, LINEAR = Resampling(3), Resampling(1)


def zoomed(x: np.ndarray, grid: tuple[int, ...], order: int) -> np.ndarray:
    """What skimage.transform.resize(mode="edge", anti_aliasing=False) does, written with scipy."""
    factors = [m / n for n, m in zip(x.shape, grid, strict=True)]
    return ndimage.zoom(x, factors, order=order, mode="nearest", grid_mode=True).clip(x.min(), x.max())


@pytest.mark.parametrize("order", [1, 3])
def test_resampling_is_scipys_over_all_axes_at_once(order: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, 14, 11))
    result = resampled(torch.from_numpy(x), (7, 19, 11), (1, 1, 1), (1.3, 0.74, 1), Resampling(order))
    for channel, resampled_channel in zip(x, result.numpy(), strict=True):
        np.testing.assert_allclose(resampled_channel, zoomed(channel, (7, 19, 11), order), atol=1e-12)
    assert (result.amax((1, 2, 3)) <= torch.from_numpy(x).amax((1, 2, 3))).all()


def test_a_coarse_axis_is_resampled_by_itself_slice_by_slice() -> None:
    x = np.random.default_rng(1).normal(size=(1, 5, 12, 10))
    result = resampled(torch.from_numpy(x), (7, 8, 13), (5, 0.8, 0.8), (3.6, 1.2, 0.6), CUBIC)[0].numpy()
    slices = np.stack([zoomed(plane, (8, 13), 3) for plane in x[0]])
    nearest = np.clip(np.floor(5 / 7 * (np.arange(7) + 0.5)).astype(int), 0, 4)
    np.testing.assert_allclose(result, slices[nearest], atol=1e-12)


def test_resampling_is_that_of_nnunet() -> None:
    library = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    rng = np.random.default_rng(2)
    for spacing, target, how in [
        ((1, 1, 1), (1.3, 1.1, 0.9), CUBIC),
        ((5, 0.8, 0.8), (4, 1, 1), CUBIC),
        ((1, 4, 1), (1.3, 2, 0.9), CUBIC),
        ((1, 1, 4), (1.3, 0.9, 5), Resampling(1, 1)),
        ((5, 5, 1), (3, 3, 1), CUBIC),
        ((5, 0.8, 0.8), (4, 1, 1), Resampling(3, 3, True)),
        ((5, 0.8, 0.8), (4, 1, 1), Resampling(3, 0, False)),
    ]:
        x = rng.normal(size=(2, 17, 21, 19))
        grid = library.compute_new_shape(x.shape[1:], spacing, target)
        assert resampled_shape(x.shape[1:], spacing, target) == tuple(grid)
        options = {"order": how.order, "order_z": how.order_z, "force_separate_z": how.separate}
        expected = library.resample_data_or_seg_to_shape(x.copy(), grid, spacing, target, **options)
        result = resampled(torch.from_numpy(x), [int(n) for n in grid], spacing, target, how)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


def test_gradient_of_resampling_also_where_overshoot_is_cut() -> None:
    x = torch.zeros(1, 6, 6, 6, dtype=torch.float64)
    x[:, :3] = 1  # an edge: splines overshoot on both sides
    x += 1e-2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    clipped = resampled(x, (8, 7, 6), (1, 1, 1), (0.75, 0.86, 1), CUBIC)
    assert ((clipped == x.amax()) | (clipped == x.amin())).sum() > 10
    assert torch.autograd.gradcheck(
        lambda y: resampled(y, (8, 7, 6), (1, 1, 1), (0.75, 0.86, 1), CUBIC), x.requires_grad_()
    )


def test_grids_axes_windows_and_importance() -> None:
    assert resampled_shape((110, 64), (1.0, 3.0), (1.5, 1.2)) == (73, 160)
    assert [coarse_axis(mm, to, None) for mm, to in [((1, 1, 1), (1, 1, 1)), ((4, 1, 1), (1, 1, 1))]] == [None, 0]
    assert coarse_axis((1, 1, 1), (1, 1, 5), None) == 2  # only the target has one
    assert coarse_axis((4, 4, 1), (1, 1, 5), None) is None  # the scan's own spacing decides, and has two of them
    assert coarse_axis((4, 1, 1), (1, 1, 1), False) is None
    assert [place[0].start for place in windows((110,), (64,), 0.5)] == [0, 23, 46]
    assert [place[0] for place in windows((64,), (64,), 0.5)] == [slice(0, 64)]
    assert [place[0].start for place in windows((9,), (4,), 0.5)] == [0, 2, 3, 5]  # 5/3 apart, rounded
    assert [place[0].start for place in windows((12,), (4,), 0.5)] == [0, 2, 4, 6, 8]  # no more than are needed
    for step in (1, 0.5, 0.1):
        assert [place[0].start for place in windows((5,), (1,), step)] == [0, 1, 2, 3, 4]  # a slice is seen once
    weights = importance((1, 8, 16))
    assert weights.shape == (1, 8, 16)
    assert weights.max() == weights[0, 4, 8] == 10
    assert weights.min() > 0
    assert torch.equal(weights, weights.half().float())


def test_importance_and_windows_are_those_of_nnunet() -> None:
    library = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    for patch, grid in [((24, 32, 40), (26, 47, 90)), ((96, 16), (100, 100))]:
        expected = library.compute_gaussian(patch, value_scaling_factor=10, device=torch.device("cpu"))
        assert torch.equal(importance(patch), expected.float())
        starts = library.compute_steps_for_sliding_window(grid, patch, 0.5)
        assert [sorted({place[axis].start for place in windows(grid, patch, 0.5)}) for axis in range(len(patch))] == [
            sorted(set(start)) for start in starts
        ]


def test_normalisation() -> None:
    x = torch.tensor([0.0, 2.0, 4.0, 300.0])
    foreground = x != 0
    z = normalised(x, Scheme("ZScoreNormalization"), foreground)
    np.testing.assert_allclose(z, (x - x.mean()) / x.numpy().std(), rtol=1e-6)
    masked = normalised(x, Scheme("ZScoreNormalization", masked=True), foreground).numpy()
    inside = x[1:].numpy()
    np.testing.assert_allclose(masked, [0, *((inside - inside.mean()) / inside.std())], rtol=1e-6)
    ct = normalised(x, Scheme("CTNormalization", False, 10.0, 4.0, 1.0, 200.0), foreground)
    assert ct.tolist() == [-2.25, -2.0, -1.5, 47.5]
    assert normalised(x, Scheme("RescaleTo01Normalization"), foreground).tolist()[1:] == pytest.approx(
        [2 / 300, 4 / 300, 1]
    )
    assert normalised(x, Scheme("RGBTo01Normalization"), foreground)[3].item() == pytest.approx(300 / 255)
    assert torch.equal(normalised(x, Scheme("NoNormalization"), foreground), x)


class Net(nn.Module):
    """Two convolutions, the first of which knows up from down and left from right."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.first, self.last = conv(1, 4, 3, padding=1), conv(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(2 * self.first(x)))
        return logits


def plan(**changes: Any) -> Plan:
    default = Plan((0, 1, 2), (1.5, 0.9, 1.2), (4, 6, 8), (Scheme("ZScoreNormalization"),), CUBIC, LINEAR, (0, 2))
    return replace(default, **changes)


def model(**changes: Any) -> SegModel:
    changed_plan = plan(**changes)
    net = Predictor(Net(len(changed_plan.patch)), changed_plan, 0.5, True)
    return SegModel(net, TASK, head="softmax", dims=3).requires_grad_(False).eval()


def case(name: str = "a", low: float = -20.0, high: float = 300.0, **changes: Any) -> Case:
    """A scan of 6 x 9 x 11 voxels whose first slices and last column are 0."""
    stored = torch.from_numpy(np.random.default_rng(len(name)).integers(1, 200, (1, 6, 9, 11)).astype(np.int16))
    stored[:, :2], stored[..., -1] = 0, 0
    image = (stored.float() - low) / (high - low)
    target = torch.zeros(3, 6, 9, 11, dtype=torch.bool)
    target[0], target[1, 3:5, 3:6, 4:8] = True, True
    target[0] &= ~target[1]
    window, storage = Window(low, high), Storage(stored)
    return replace(
        Case(name, name, name, image, target, (2.0, 1.0, 1.0), window, None, storage, TASK.classes), **changes
    )


def answers(nnunet: SegModel, *cases: Case) -> Tensor:
    return bind(nnunet, Setting(nnunet.task, tuple(cases)))(torch.stack([scan.image for scan in cases]))


def test_a_scan_has_the_same_answer_through_any_window_that_cuts_nothing() -> None:
    wide, narrow = case(low=-1000, high=3000), case(low=0, high=199)
    torch.testing.assert_close(answers(model(), wide), answers(model(), narrow), rtol=0, atol=2e-3)
    assert not torch.allclose(answers(model(), wide), answers(model(), case("other")), atol=0.1)


def test_a_window_that_hides_what_nnunet_sees_is_refused() -> None:
    for kind in (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32):
        scan = case(low=0, high=150)
        assert scan.storage is not None
        stored = torch.from_numpy(scan.storage.stored.numpy().astype(kind))
        with pytest.raises(InputError, match=r"expected a window that holds 0 to 199, .* of a, got 0 to 150"):
            answers(model(), replace(scan, storage=Storage(stored)))
    ct = model(schemes=(Scheme("CTNormalization", False, 60.0, 30.0, 20.0, 140.0),))
    torch.testing.assert_close(answers(ct, case(low=0, high=150)), answers(ct, case()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mm", [1000.0, 1e-3])
def test_a_spacing_that_leaves_no_voxels_or_too_many_is_refused(mm: float) -> None:
    with pytest.raises(InputError, match=rf"expected plans.json with a spacing that .*got {mm:g} x {mm:g} x {mm:g} mm"):
        answers(model(spacing=(mm, mm, mm)), case())


def test_a_batch_of_other_windows_and_spacings_is_what_each_is_alone() -> None:
    cases = case("a"), case("bb", low=-500, high=900), case("ccc", spacing_mm=(3.0, 0.7, 1.4))
    together = answers(model(), *cases)
    for n, scan in enumerate(cases):
        assert torch.equal(together[n], answers(model(), scan)[0])
    with pytest.raises(InputError, match="expected the 2 scans that nnU-Net is bound to, got 1"):
        bind(model(), Setting(TASK, tuple(cases[:2])))(cases[0].image[None])
    with pytest.raises(InputError, match="expected the 0 scans"):
        model()(cases[0].image[None])


def test_the_model_itself_is_not_changed_by_being_bound() -> None:
    nnunet = model()
    bound = nnunet.bind(Setting(nnunet.task, (case(),)))
    assert bound.net.windows.net is nnunet.net.windows.net
    assert nnunet.net.cases == ()
    assert not bound.training
    assert not bound.net.training


def test_outside_of_the_box_there_is_background_alone() -> None:
    result = model().decide(answers(model(), case()))[0]
    assert result[0, :2].all()
    assert result[0, ..., -1].all()
    assert result[1:, 2:, :, :-1].any()


def test_orientation_of_the_file_is_what_the_network_sees() -> None:
    plain = case()
    turned = replace(
        plain,
        image=plain.image.flip(2, 3).transpose(1, 2),
        target=plain.target.flip(2, 3).transpose(1, 2),
        spacing_mm=(1.0, 2.0, 1.0),
        storage=Storage(plain.storage.stored.flip(2, 3).transpose(1, 2), order=(1, 0, 2), flips=(0, 2)),
    )
    torch.testing.assert_close(answers(model(), turned)[0].transpose(1, 2).flip(2, 3), answers(model(), plain)[0])
    # and the plan's own order of axes comes on top
    assert not torch.allclose(answers(model(transpose=(2, 0, 1)), plain), answers(model(), plain))


def test_a_2d_configuration_goes_through_slices() -> None:
    flat = model(spacing=(0.9, 1.2), patch=(6, 8), mirror=(0, 1))
    assert flat.net.windows.flips == ((), (1,), (2,), (1, 2))
    scan = case(spacing_mm=(3.5, 0.9, 1.2))  # no resampling: then a slice's answer is its own
    whole, changed = answers(flat, scan), scan.image.clone()
    changed[:, 4] = changed[:, 4].flip(-2)  # the same values, so the same mean, and the same box
    moved = bind(flat, Setting(flat.task, (scan,)))(changed[None])
    assert torch.allclose(moved[0, :, 3], whole[0, :, 3], atol=1e-5)
    assert not torch.allclose(moved[0, :, 4], whole[0, :, 4], atol=1e-2)


def test_the_gradient_is_that_of_the_whole_pipeline() -> None:
    nnunet = model(schemes=(Scheme("ZScoreNormalization", masked=True),)).double()
    scan = case()
    bound = bind(nnunet, Setting(nnunet.task, (scan,)))
    foreground = scan.storage.stored[None] != 0
    noise = torch.rand(foreground.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (scan.image.double()[None] + 1e-3 * noise * foreground).requires_grad_()  # no ties among the extremes
    weights = torch.randn(1, 3, 6, 9, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad((bound(x).tanh() * weights).sum(), x)
    rng = torch.Generator().manual_seed(2)
    for _ in range(3):
        step = 1e-6 * torch.randn(x.shape, generator=rng, dtype=torch.float64) * foreground
        with torch.no_grad():
            ends = [(bound(x + sign * step).tanh() * weights).sum() for sign in (1, -1)]
        torch.testing.assert_close((ends[0] - ends[1]) / 2, (grad * step).sum(), rtol=1e-5, atol=1e-12)


def test_logits_are_kept_in_half_precision_and_gradients_are_not() -> None:
    """As nnU-Net keeps them, since voxels hang on it; the gradient is that of the model that rounds nothing."""
    result = []
    weights = torch.randn(1, 3, 6, 9, 11, generator=torch.Generator().manual_seed(1))
    for nnunet, x in ((model(), case().image[None]), (model().double(), case().image[None].double())):
        net, x = bind(nnunet, Setting(nnunet.task, (replace(case(), image=x[0]),))).net, x.requires_grad_()
        logits = net(x)
        (grad,) = torch.autograd.grad((logits * weights).sum(), x)
        result.append((logits.detach()[:, :, 2:, :, :-1], grad))  # what is not 0
    (logits, grad), (known, exact) = result
    assert torch.equal(logits.half().float(), logits)
    assert not torch.equal(known.half().double(), known)
    apart = (logits - known).abs()  # large in corners alone, where a window's weights are half precision's smallest
    assert apart.median() < 1e-3
    assert apart.max() < 0.5
    assert (grad - exact).norm() < 1e-5 * exact.norm()


def test_the_loop_tells_the_model_whose_images_it_sees() -> None:
    cases = case("a"), case("bb", low=-500, high=900)
    attacks = [build("pgd(linf(8/255), steps=2)", "attack"), build("square(queries=3)", "attack")]
    with frozen(model()) as nnunet:
        together = attack_chunk(nnunet, [Batch.of(cases)], attacks, seed=3)
        alone = [attack_chunk(nnunet, [Batch.of([scan])], attacks, seed=3) for scan in cases]
    for n, result in enumerate(together):
        rows = [row for part in alone for row in part[n].rows]
        assert [(row.case, row.hit_adv, row.hit_clean) for row in result.rows] == [
            (row.case, row.hit_adv, row.hit_clean) for row in rows
        ]


def test_a_results_folder_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    nnunet = read(folder)
    assert nnunet.net.plan.patch == (4, 8, 8)
    assert nnunet.net.plan.image == Resampling(3, 0, None)
    assert len(nnunet.net.windows.flips) == 8
    assert len(read(folder, ", mirror=False").net.windows.flips) == 1
    result = answers(nnunet, case())
    assert result.shape == (1, 3, 6, 9, 11)
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert all(torch.equal(nnunet.net.windows.net.state_dict()[name], value) for name, value in weights.items())


def test_a_configuration_inherits(tmp_path: Path) -> None:
    nnunet = read(write_folder(tmp_path, configuration="3d_small"))
    assert nnunet.net.plan.patch == (2, 4, 4)
    assert nnunet.net.plan.spacing == (2.0, 1.0, 1.0)


def test_plans_from_before_release_2_5(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    new = read(folder)
    content = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    described = content["configurations"]["3d_fullres"]
    del described["architecture"]
    described |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_kernel_sizes": [[3, 3, 3]] * 2,
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
    }
    write(folder / "plans.json", content)
    assert torch.equal(answers(read(folder), case()), answers(new, case()))


class Anything:
    """What a checkpoint may hold and only unpickling brings back."""


def test_a_checkpoint_is_unpickled_only_on_request(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, device=Anything())
    with pytest.raises(InputError, match=r"objects that would have to be unpickled.*write trust=True"):
        read(folder)
    assert read(folder, ", trust=True").net.plan.patch == (4, 8, 8)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("dataset.json", {"labels": {"background": 0, "heart": 1}}, "expected data with the classes background, heart"),
        ("dataset.json", {"labels": {"background": 0, "liver": [1, 2]}}, "regions_class_order: expected one value"),
        ("plans.json", {"label_manager": "MyLabels"}, "label_manager: expected LabelManager .* got MyLabels"),
        ("plans.json", {"preprocessor_name": "Mine"}, "preprocessor_name: expected DefaultPreprocessor .* got Mine"),
        ("plans.json", {"transpose_backward": [1, 0, 2]}, r"transpose_backward: expected the inverse of \[0, 1, 2\]"),
        ("dataset.json", {"channel_names": {"0": "T1", "1": "T2"}}, "expected data with the channels T1, T2"),
        ("plans.json", {"image_reader_writer": "NaturalImage2DIO"}, "got NaturalImage2DIO"),
        ("plans.json", {"resampling_fn_data": "resample_torch_simple"}, "got resample_torch_simple"),
        ("plans.json", {"normalization_schemes": ["Mine"]}, "expected a normalisation of nnU-Net's own .* got Mine"),
        ("plans.json", {"configurations": {}}, "got KeyError: '3d_fullres'"),
        (
            "plans.json",
            {"architecture": {"network_class_name": "os.system", "arch_kwargs": {}, "_kw_requires_import": []}},
            "expected a network or layer of dynamic_network_architectures .* got os.system",
        ),
        ("plans.json", {"patch_size": [[4], 8, 8]}, r"the field 'patch_size.0' in .*plans.json"),
        ("plans.json", {"patch_size": [0, 8, 8]}, r"the field 'patch_size.0' in .*plans.json"),
        ("plans.json", {"patch_size": [4, 8, 10**12]}, r"the field 'patch_size.2' in .*plans.json"),
        ("plans.json", {"spacing": [2.0, [1.0], 1.0]}, r"the field 'spacing.1' in .*plans.json"),
        ("plans.json", {"spacing": [2.0, 0.0, 1.0]}, r"the field 'spacing.1' in .*plans.json"),
        ("plans.json", {"spacing": [2.0, 1e-320, 1.0]}, r"the field 'spacing.1' in .*plans.json"),
        ("plans.json", {"resampling_fn_data_kwargs": {"order": "x"}}, r"'resampling_fn_data_kwargs.order' in"),
        ("plans.json", {"previous_stage": "3d_lowres"}, None),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, name: str, changes: dict[str, Any], says: str | None) -> None:
    folder = write_folder(tmp_path)
    if says is None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content["configurations"]["3d_fullres"] |= changes
        write(folder / name, content)
        says = "got a cascade"
    else:
        edited(folder, name, **changes)
    with pytest.raises(InputError, match=says) as refusal:
        read(folder)
    assert str(refusal.value).count("expected") == 1  # one sentence, not one within another


def test_a_network_that_fails_is_told(tmp_path: Path) -> None:
    """Its constructor takes options that it stumbles over when it runs."""
    folder = write_folder(tmp_path)
    content = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    options = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    options["norm_op_kwargs"]["eps"] = "x"
    write(folder / "plans.json", content)
    nnunet = read(folder)
    with pytest.raises(InputError, match=r"expected an answer from the network .* copy the results folder again"):
        answers(nnunet, case())


def test_a_model_of_regions_fits_the_data_that_it_was_trained_on(tmp_path: Path) -> None:
    """The same dataset.json lies beside both; a voxel's regions follow from the one map that nnU-Net writes."""
    content = {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
        "channel_names": {"0": "MRI 0"},
    }
    for n in range(3):
        write_pair(tmp_path / "raw" / "imagesTr" / f"p_{n}_0000.nii", tmp_path / "raw" / "labelsTr" / f"p_{n}.nii")
    write(tmp_path / "raw" / "dataset.json", content)
    task = open_source("decathlon", tmp_path / "raw").task
    folder = write_folder(tmp_path)
    write(folder / "dataset.json", content)
    one = case("a")
    regions = read(folder, task=task).bind(Setting(task, (one,)))
    log_odds = regions(one.image[None])
    whole, core, enhancing = regions.decide(log_odds)[0]
    assert not (enhancing & ~core).any()  # painted: what is enhancing is core, and whole
    assert not (core & ~whole).any()
    assert 0 < whole.float().mean() < 1
    image = one.image[None].clone().requires_grad_()
    regions(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    with pytest.raises(InputError, match="expected data with the regions, which may overlap, whole, core, enhancing"):
        read(folder, task=replace(task, exclusive=True))


def test_a_voxel_outside_of_the_box_is_in_no_region(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    edited(folder, "dataset.json", labels={"background": 0, "a": [1, 2], "b": 2, "c": 3}, regions_class_order=[1, 2, 3])
    task = replace(TASK, classes=("a", "b", "c"), exclusive=False)
    one = case("a")
    bound = read(folder, task=task).bind(Setting(task, (one,)))
    decided = bound.decide(bound(one.image[None]))[0]
    assert decided.any()
    assert not decided[:, :2].any()
    assert not decided[..., -1].any()


def test_channels_of_other_names_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    edited(folder, "dataset.json", channel_names={"0": "T1", "1": "FLAIR"})
    task = replace(TASK, channels=2, channel_names=("FLAIR", "T1"))
    with pytest.raises(InputError, match=r"expected data with the channels T1, FLAIR .* got FLAIR, T1"):
        read(folder, task=task)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for options, says in [
        (", fold=1", "expected one of the folds 0 of .* got 1; write fold=0"),
        (", checkpoint='checkpoint_best.pth'", "got checkpoint_final.pth; name it: checkpoint='checkpoint_final.pth'"),
        (", step=0.0", r"expected step in \(0, 1\], got 0.0"),
    ]:
        with pytest.raises(InputError, match=says):
            read(folder, options)
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=r"checkpoint_final.pth, got no checkpoint; copy the folder again"):
        read(folder)
    (folder / "fold_0").rename(folder / "other")
    with pytest.raises(InputError, match="expected fold_0 or another fold"):
        read(folder)
    (folder / "plans.json").unlink()
    with pytest.raises(InputError, match=r"expected plans.json in"):
        read(folder)


def test_doctor_sees_what_comes_after_its_preprocessing() -> None:
    with frozen(model()) as nnunet:
        facts, flags = profile(nnunet, Batch.of([case("a"), case("bb", low=-500, high=900)]))
    low, high = map(float, facts["input"]["after its preprocessing"].split(" to "))
    assert low < -1
    assert high > 1  # z-scores, where the scan is in [0, 1]
    assert facts["alone as in a batch"] == "yes"
    assert "MA017" not in [flag.code for flag in flags]  # logits are rounded, and their gradient is not
    assert "resampled to 1.5 x 0.9 x 1.2 mm, in windows of 4 x 6 x 8, 4 mirrored" in facts["expects"]["cases"]


def test_windows_that_are_not_mirrored_are_not_said_to_be_copies() -> None:
    with frozen(model(mirror=())) as nnunet:
        facts, _ = profile(nnunet, Batch.of([case("a")]))
    assert facts["expects"]["cases"].endswith("in windows of 4 x 6 x 8")
