"""Settings of a reconstruction: neutral ones are the identity, and each number does what it says."""

import math

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.physical.ascent import Parametrised
from medseg_attack.attacks.reconstruction.gibbs import ZeroFilling
from medseg_attack.attacks.reconstruction.log_compression import Decibels
from medseg_attack.attacks.reconstruction.sharpness import KernelGain, radial_gain
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import frozen

NAMES = ["log_compression", "sharpness", "gibbs"]
SEEDS = [1, 2, 3]


def image(*shape: int) -> Tensor:
    return 0.2 + 0.6 * torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def attack(text: str) -> Parametrised:
    built: Parametrised = registry.build(text, "attack")
    return built


@pytest.mark.parametrize("shape", [(16, 13), (3, 12, 10)])
@pytest.mark.parametrize("name", NAMES)
def test_neutral_settings_are_the_identity(name: str, shape: tuple[int, ...]) -> None:
    x = image(*shape)
    numbers = torch.zeros_like(attack(name).start(x, SEEDS[:2])) if name != "gibbs" else -torch.ones(2, 3).double()
    torch.testing.assert_close(attack(name).render(numbers, x, 1.0).image, x, atol=1e-14, rtol=0)


def test_a_gain_of_three_decibels_is_a_twentieth_of_a_range_of_sixty() -> None:
    """Half of the budget is that of the gain; the other half of a dynamic range that black loses most by."""
    x = image(16, 13)
    numbers = torch.zeros(2, 9, dtype=torch.float64)
    numbers[:, 1:] = 1
    louder = attack("log_compression(decibels(3))").render(numbers, x, 1.0).image
    torch.testing.assert_close(louder, x + 1.5 / 60)
    assert Decibels(3).size(louder, x).tolist() == pytest.approx([1.5, 1.5], abs=1e-4)
    numbers = torch.zeros(2, 9, dtype=torch.float64)
    numbers[:, 0] = 1
    wider = attack("log_compression(decibels(3))").render(numbers, x, 1.0).image
    torch.testing.assert_close(wider, 1 + (x - 1) * (1 + 1.5 / 60))


def test_gain_changes_with_depth_and_black_stays_black() -> None:
    x = image(16, 12)
    x[:, :, :, 3] = 0
    numbers = torch.zeros(2, 9, dtype=torch.float64)
    numbers[:, 1:5] = 1  # near the probe
    change = attack("log_compression").render(numbers, x, 1.0).image - x
    assert change[:, :, 0, 4].min() > 10 * change[:, :, -1, 4].abs().max()
    drawn = attack("log_compression(steps=0)")
    with frozen(blobs.healthy()) as model:
        result = drawn(model, x[:1].float(), (x[:1] > 0.5).expand(1, 2, 16, 12), [1])
    assert (result.image[:, :, :, 3] == 0).all()
    assert Decibels().size(x + 0.01, x).isinf().all()


def test_a_kernel_keeps_the_mean_and_has_the_gains_of_its_curve() -> None:
    gain = radial_gain(0.3 * torch.ones(1, 8, dtype=torch.float64), (16, 12))[0]
    assert gain[0, 0] == 1
    others = gain.flatten()[1:]
    torch.testing.assert_close(others, torch.full_like(others, math.exp(0.3)))
    x = image(16, 12)
    sharper = attack("sharpness").render(torch.ones(2, 8, dtype=torch.float64), x, 1.0)
    inside = (sharper.image > 0) & (sharper.image < 1)
    expected = x.mean((2, 3), keepdim=True) + math.exp(0.3) * (x - x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(sharper.image[inside], expected[inside])
    moderate = x.mean((2, 3), keepdim=True) + math.exp(0.2) * (x - x.mean((2, 3), keepdim=True))
    assert KernelGain().size(moderate, x).tolist() == pytest.approx([0.2, 0.2])


def test_zeros_take_the_outer_frequencies_and_no_other() -> None:
    x = image(16, 12)
    numbers = torch.tensor([[1.0, 1.0, -1.0]] * 2, dtype=torch.float64)
    cut = attack("gibbs(zero_filling(0.5))").render(numbers, x, 1.0).image
    before, after = torch.fft.fft2(x), torch.fft.fft2(cut)
    rows, columns = torch.fft.fftfreq(16).abs() / 0.5, torch.fft.fftfreq(12).abs() / 0.5
    inner = (torch.maximum(rows[:, None], columns[None]) <= 0.5).expand_as(before)
    torch.testing.assert_close(after[inner], before[inner], atol=1e-9, rtol=0)
    outer = (torch.maximum(rows[:, None], columns[None]) > 0.52).expand_as(before)
    assert after[outer].abs().max() < 1e-9
    assert (ZeroFilling().size(cut, x) <= 0.5).all()
    assert (ZeroFilling().size(cut, x) > 0.3).all()


def test_a_sharp_cut_rings_and_a_soft_one_does_not() -> None:
    """Beside an edge from 0.2 to 0.8 a sharp cut overshoots by about a tenth of the step."""
    edge = torch.full((1, 1, 64, 64), 0.2, dtype=torch.float64)
    edge[..., 16:48] = 0.8
    highs = []
    for softness in (-1.0, 1.0):
        numbers = torch.tensor([[-1.0, 1.0, softness]], dtype=torch.float64)
        highs.append(attack("gibbs(zero_filling(0.8))").render(numbers, edge, 1.0).image.max().item() - 0.8)
    assert highs[0] > 0.03
    assert highs[1] < highs[0] / 2


@pytest.mark.parametrize("name", NAMES)
def test_searched_settings_do_more_than_drawn_ones(name: str) -> None:
    batch = blobs.batch(3)
    eps = {"log_compression": 12.0, "sharpness": 1.0, "gibbs": 0.9}[name]
    harms = []
    for steps in (0, 10):
        short = registry.with_eps(registry.build(name, "attack", {"steps": steps}), eps)
        with frozen(blobs.healthy()) as model:
            harms.append(short(model, batch.image, batch.target, SEEDS).harm.mean())
    assert harms[1] > harms[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log_compression(knots=3)", "knots"),
        ("sharpness(linf)", "the ball kernel_gain for sharpness"),
        ("gibbs(linf)", "the ball zero_filling for gibbs"),
        ("log_compression(decibels(3, range_db=0))", "range_db"),
        ("gibbs(zero_filling(1.5))", "eps"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")
