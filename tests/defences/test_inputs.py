"""What every layer in front of a model must keep, so that a new file is tested by existing; and what each must do."""

import functools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medseg_attack import registry
from medseg_attack.defences.input_layers import GeometricDefence, InputDefence, layered
from medseg_attack.defences.inputs.bit_depth import BitDepth
from medseg_attack.defences.inputs.gaussian_blur import GaussianBlur
from medseg_attack.defences.inputs.jpeg import Jpeg
from medseg_attack.defences.inputs.median import Median
from medseg_attack.defences.inputs.pixel_deflection import PixelDeflection
from medseg_attack.defences.inputs.remap import Remap
from medseg_attack.defences.inputs.resize_pad import ResizePad
from medseg_attack.defences.inputs.tv import TotalVariation
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import save_tensors
from medseg_attack.models.networks.denoiser import FILE, Denoiser

NAMES = [name for name in registry.names("defence") if registry.find(name).family == "inputs"]
GRIDS = [(16, 20), (9, 12, 10)]
SEEDS = [3, 5, 8]


@functools.cache
def denoiser_file() -> str:
    """The file of a denoiser with random weights."""
    folder = Path(tempfile.mkdtemp())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_tensors(folder / FILE, Denoiser().state_dict())
    return str(folder)


def built(name: str) -> InputDefence:
    text = f"denoiser(file={denoiser_file()!r}, steps=2)" if name == "denoiser" else name
    layer: InputDefence = registry.build(text, "defence")
    return layer


def images(grid: tuple[int, ...], n: int = 3, channels: int = 2) -> Tensor:
    """Smooth structures with some noise, from 0 to 1."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, *grid, generator=rng)
    ramp = torch.linspace(0, 1, grid[-1])
    x = 0.3 * x + 0.7 * ramp
    x[:, :, ..., 0], x[:, :, ..., -1] = 0.0, 1.0
    return x


def test_the_layers_are_those_of_the_literature() -> None:
    known = "bilateral bit_depth gaussian_blur jpeg median nlm pixel_deflection remap resize_pad tv"
    assert set(known.split()) <= set(NAMES)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_images_stay_images(self, name: str, grid: tuple[int, ...]) -> None:
        x = images(grid)
        before = x.clone()
        y = built(name)(x, SEEDS)
        assert torch.equal(x, before)
        assert (y.shape[:2], y.dtype, y.ndim) == (x.shape[:2], x.dtype, x.ndim)
        assert y.shape == x.shape or isinstance(built(name), GeometricDefence)
        assert y.min() >= 0
        assert y.max() <= 1
        assert not torch.equal(y, x)  # it does something

    def test_precision_is_kept(self, name: str, grid: tuple[int, ...]) -> None:
        assert built(name)(images(grid).double(), SEEDS).dtype == torch.float64

    def test_the_same_seeds_give_the_same_bits_and_others_do_not(self, name: str, grid: tuple[int, ...]) -> None:
        layer, x = built(name), images(grid)
        state = torch.random.get_rng_state()
        assert torch.equal(layer(x, SEEDS), layer(x, SEEDS))
        assert torch.equal(layer(x, SEEDS), layer(x, [13, 21, 34])) != layer.stochastic
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_a_batch_is_its_samples_one_by_one(self, name: str, grid: tuple[int, ...]) -> None:
        layer, x = built(name), images(grid).double()
        alone = torch.cat([layer(x[i : i + 1], SEEDS[i : i + 1]) for i in range(3)])
        assert torch.allclose(layer(x, SEEDS), alone, rtol=0, atol=1e-12)

    def test_a_constant_image_stays_one(self, name: str, grid: tuple[int, ...]) -> None:
        x = torch.full((3, 1, *grid), 102 / 255)
        y = built(name)(x, SEEDS)
        assert torch.allclose(y, y.flatten()[0].expand_as(y), atol=1e-5)

    @pytest.mark.parametrize("backward", ["own", "adapted", "smooth"])
    def test_every_backward_rule_has_the_same_values_and_a_finite_gradient(
        self, name: str, grid: tuple[int, ...], backward: str
    ) -> None:
        layer, x = built(name), images(grid).requires_grad_()
        y = layered(layer, x, SEEDS, backward)  # type: ignore[arg-type]
        assert torch.allclose(y, layer(x.detach(), SEEDS), atol=1e-6)
        (grad,) = torch.autograd.grad((y * torch.linspace(0.5, 1, y.shape[-1])).sum(), x)
        assert torch.isfinite(grad).all()
        if backward != "own" or layer.differentiable:
            assert (grad != 0).float().mean() > 0.3

    def test_a_layer_on_the_grid_has_a_stand_in_there(self, name: str, grid: tuple[int, ...]) -> None:
        layer, x = built(name), images(grid)
        if not isinstance(layer, GeometricDefence):
            assert layer.smooth(x, SEEDS).shape == x.shape
            assert (layer.smooth(x, SEEDS) - layer(x, SEEDS)).abs().mean() < 0.25

    def test_masks_come_back_to_the_grid(self, name: str, grid: tuple[int, ...]) -> None:
        layer, x = built(name), images(grid)
        if isinstance(layer, GeometricDefence):
            back = layer.back(layer(x, SEEDS), grid, SEEDS)
            assert back.shape == x.shape
            assert (back - x).abs().mean() < 0.1


def test_layers_whose_gradient_is_zero_say_so() -> None:
    """Of what declares a useful gradient, the gradient predicts a finite difference."""
    x = 0.2 + 0.6 * images((12, 14), 1, 1).double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for name in NAMES:
        layer = built(name)
        if not layer.differentiable:
            continue
        z = x.clone().requires_grad_()
        weight = torch.linspace(-1, 1, layer(x, [1]).shape[-1], dtype=torch.float64)
        (grad,) = torch.autograd.grad((layer(z, [1]) * weight).sum(), z)
        h = 1e-5
        slope = ((layer(x + h * direction, [1]) - layer(x - h * direction, [1])) * weight).sum() / (2 * h)
        assert float((grad * direction).sum()) == pytest.approx(float(slope), rel=0.02, abs=1e-3), name


# --- each against what is known of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_bit_depth_is_idempotent_off_by_half_a_step_at_most_and_has_2_to_the_bits_levels(bits: int) -> None:
    x = torch.linspace(0, 1, 5001, dtype=torch.float64).view(1, 1, 1, -1)
    y = BitDepth(bits)(x, [0])
    assert torch.equal(BitDepth(bits)(y, [0]), y)
    assert len(torch.unique(y)) == min(2**bits, 5001)
    assert float((y - x).abs().max()) == pytest.approx(0.5 / (2**bits - 1), rel=0.02)


def test_jpeg_rounds_and_loses_little_of_a_smooth_image() -> None:
    flat = torch.full((1, 1, 24, 20), 0.4)
    assert (Jpeg()(flat, [0]) - flat).abs().max() <= 1 / 255
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 3, 60), indexing="ij")
    smooth = (0.5 + 0.4 * torch.sin(rows) * torch.cos(columns))[None, None]
    error = (Jpeg()(smooth, [0]) - smooth).square().mean()
    assert -10 * math.log10(error) > 35  # PSNR in dB
    eight_bit = (smooth * 255).round() / 255
    assert torch.equal(Jpeg()(eight_bit + 0.4 / 255, [0]), Jpeg()(eight_bit, [0]))  # less than half a level is gone
    bias = (Jpeg(95)(smooth + 0.3 / 255, [0]) - smooth).mean() * 255
    assert abs(float(bias)) < 0.4  # cutting off instead of rounding would lose half a level


@pytest.mark.parametrize("grid", GRIDS)
def test_the_median_is_that_of_scipy(grid: tuple[int, ...]) -> None:
    x = images(grid, 1, 1)
    expected = ndimage.median_filter(x[0, 0].numpy(), 3, mode="mirror")
    np.testing.assert_array_equal(Median(3)(x, [0])[0, 0].numpy(), expected)


def test_the_blur_weakens_waves_as_its_formula_says() -> None:
    waves = (torch.arange(64).view(1, 1, 1, -1) * math.pi / 4).cos().double().expand(1, 1, 64, 64)
    line = GaussianBlur(1.0)(waves, [0])[0, 0, 32, 16:48]
    assert float(line.max()) == pytest.approx(math.exp(-((math.pi / 4) ** 2) / 2), rel=0.001)
    expected = ndimage.gaussian_filter(images((16, 20), 1, 1)[0, 0].double().numpy(), 1.0, mode="mirror")
    ours = GaussianBlur(1.0)(images((16, 20), 1, 1).double(), [0])[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_total_variation_falls_and_without_weight_nothing_changes() -> None:
    def variation(x: Tensor) -> float:
        return float(x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum())

    x = images((16, 20))
    assert torch.equal(TotalVariation(0.0, 0.0)(x, SEEDS), x)
    values = [variation(TotalVariation(weight, 0.0)(x, SEEDS)) for weight in (0.0, 0.01, 0.03, 0.1)]
    assert values == sorted(values, reverse=True)
    step = torch.cat((torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)), 3)
    # of a step of two halves of width 8 the solution is known: each side moves by weight / 8
    result = TotalVariation(0.4, 0.0, steps=400)(step, [0])
    assert torch.allclose(result[..., :8], torch.full_like(result[..., :8], 0.05), atol=2e-3)
    assert torch.allclose(result[..., 8:], torch.full_like(result[..., 8:], 0.95), atol=2e-3)


def test_deflected_values_are_values_of_the_image_and_as_many_as_expected() -> None:
    x = torch.arange(1, 64 * 64 + 1).view(1, 1, 64, 64) / 4096
    y = PixelDeflection(share=0.1, sigma=0)(x, [7])
    assert torch.isin(y, x).all()
    n, k = 4096, 410
    assert int((x != y).sum()) == pytest.approx(n * (1 - (1 - 1 / n) ** k), abs=25)
    assert torch.equal(PixelDeflection(share=0.0, sigma=0)(x, [7]), x)
    assert torch.allclose(PixelDeflection(share=0.0, sigma=1e-9)(x, [7]), x, atol=1e-6)


def test_deflection_takes_noise_away_and_leaves_edges() -> None:
    square = torch.zeros(1, 1, 32, 32)
    square[..., 8:24, 8:24] = 0.8
    noisy = (square + 0.04 * torch.randn(square.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    result = PixelDeflection(share=0.0)(noisy, [0])
    assert (result - square).square().mean() < 0.5 * (noisy - square).square().mean()


def test_resizing_by_1_changes_nothing_and_masks_come_back_in_place() -> None:
    x = images((16, 20))
    assert torch.equal(ResizePad(1.0)(x, SEEDS), x)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 40), indexing="ij")
    disc = ((rows**2 + columns**2) < 0.4).float().expand(3, 1, 32, 40)
    layer = ResizePad(1.25)
    moved = layer(disc, SEEDS)
    assert moved.shape[2:] == (40, 50)
    assert len({tuple(image.nonzero().float().mean(0).tolist()) for image in moved}) == 3  # each in another place
    back = layer.back(moved, (32, 40), SEEDS) >= 0.5
    overlap = 2 * (back & disc.bool()).sum() / (back.sum() + disc.sum())
    assert overlap > 0.98


def test_remapping_goes_through_its_values_and_keeps_the_order() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64).view(1, 1, 1, -1)
    y = Remap((0.0, 0.1, 0.5, 0.6, 1.0))(x, [0])[0, 0, 0]
    assert (y.diff() > 0).all()
    assert y[[0, 25, 50, 75, 100]].tolist() == pytest.approx([0.0, 0.1, 0.5, 0.6, 1.0])


@pytest.mark.parametrize(
    "spec",
    [
        "bit_depth(bits=0)",
        "jpeg(quality=0)",
        "median(size=2)",
        "gaussian_blur(sigma=0.0)",
        "bilateral(size=4)",
        "bilateral(sigma_space=0.0)",
        "nlm(strength=0.0)",
        "nlm(search=4)",
        "tv(dropped=1.0)",
        "tv(weight=-1.0)",
        "pixel_deflection(share=2.0)",
        "resize_pad(largest=0.5)",
        "remap(values=(0.0, 0.5, 0.4))",
    ],
)
def test_options_out_of_range_are_refused_in_a_sentence(spec: str) -> None:
    with pytest.raises(InputError, match=r"expected .+, got .+; "):
        registry.build(spec, "defence")


@dataclass(frozen=True)
class Halved(InputDefence):
    """Every second pixel, and no way back."""

    def __call__(self, image: Tensor, seeds: object) -> Tensor:
        return image[..., ::2]


def test_a_layer_that_changes_the_grid_and_has_no_way_back_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected Halved to keep the shape \(3, 2, 16, 20\) .*; make it"):
        layered(Halved(), images((16, 20)), SEEDS, "own")
