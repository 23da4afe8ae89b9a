"""The chain of a hospital: each link by what it does, and what survives it."""

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.defences.input_layers import layered
from medseg_attack.defences.inputs.reacquisition import LINKS, Reacquisition
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import frozen
from medseg_attack.numerics.noise import noise_of
from medseg_attack.numerics.reacquisition import averaged_slices, exported, jpeg2000, resampled

SEEDS = [1, 2]


def images(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.nn.functional.interpolate(torch.rand(2, 1, 4, 4, generator=rng), shape, mode="bilinear")


def test_no_links_are_the_identity_and_harm_survives_whole() -> None:
    x, batch = images(24, 20), blobs.batch(2)
    assert Reacquisition(())(x, SEEDS) is x
    with frozen(blobs.healthy()) as model:
        attacked = registry.build("pgd(linf(0.03))", "attack")(model, batch.image, batch.target, SEEDS)
        through = Reacquisition(())(attacked.image, SEEDS)
        assert torch.equal(model(through), model(attacked.image))


def test_an_export_rounds_to_256_levels_and_a_change_below_half_of_one_is_lost() -> None:
    x = (torch.arange(256.0) / 255).view(1, 1, 16, 16)
    assert torch.equal(exported(x), x)
    torch.testing.assert_close(exported(x + 0.4 / 255), x)
    assert not torch.equal(exported((x + 0.6 / 255).clamp(max=1)), x)


def test_a_lossless_codec_is_an_export_and_a_lossy_one_is_near_it() -> None:
    x = images(64, 60)
    torch.testing.assert_close(jpeg2000(x, 1.0), exported(x))
    lossy = jpeg2000(x, 10.0)
    assert not torch.equal(lossy, exported(x))
    assert (lossy - x).abs().max() < 0.05
    tiny = images(3, 5)
    assert jpeg2000(tiny, 10.0).shape == tiny.shape


def test_a_ramp_survives_another_grid_but_for_its_border() -> None:
    ramp = torch.linspace(0, 1, 40, dtype=torch.float64).expand(1, 1, 30, 40).contiguous()
    back = resampled(ramp, 0.8)
    torch.testing.assert_close(back[..., 3:-3], ramp[..., 3:-3], atol=1e-12, rtol=0)
    checkered = (torch.arange(40) % 2).double().expand(1, 1, 30, 40).contiguous()
    assert (resampled(checkered, 0.8) - checkered).abs().mean() > 0.1
    torch.testing.assert_close(resampled(ramp, 1.0), ramp)


def test_thick_slices_average_along_the_first_axis_and_slices_have_none() -> None:
    volume = torch.zeros(1, 1, 5, 3, 3)
    volume[:, :, 2] = 1
    assert averaged_slices(volume)[0, 0, :, 0, 0].tolist() == [0, 0.25, 0.5, 0.25, 0]
    x = images(8, 6)
    assert Reacquisition(("thickness",))(x, SEEDS) is x


def test_the_second_draw_is_as_strong_as_the_noise_of_the_image() -> None:
    rng = torch.Generator().manual_seed(3)
    flat = 0.5 + 0.02 * torch.randn(2, 1, 64, 64, generator=rng)
    again = Reacquisition(("noise",))(flat, SEEDS)
    assert noise_of(again).tolist() == pytest.approx([0.02 * 2**0.5] * 2, rel=0.1)
    assert (again - flat).std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(again[0] - flat[0], again[1] - flat[1])


@pytest.mark.parametrize("link", [link for link in LINKS if link != "thickness"])
def test_every_link_lets_the_gradient_of_an_attack_through(link: str) -> None:
    x, layer = images(24, 20).requires_grad_(), Reacquisition((link,))
    (grad,) = torch.autograd.grad(layered(layer, x, SEEDS, "adapted").sum(), x)
    assert (grad != 0).double().mean() > 0.9
    (own,) = torch.autograd.grad(layered(layer, x, SEEDS, "own").sum(), x)
    assert torch.equal(own, grad) == layer.differentiable
    assert layer.differentiable or not own.any()


def test_an_attack_that_averages_over_the_chain_survives_it_better() -> None:
    """Harm on re-acquired images: of PGD on the bare model, and of PGD on the model behind the chain."""
    batch = blobs.batch(3)
    seeds = [1, 2, 3]
    chain = Reacquisition(("resample", "noise"))  # a codec in 8 bits ruins images as small as these by itself

    class Behind:
        def __init__(self, model):  # type: ignore[no-untyped-def]
            self.model, self.task, self.decide = model, model.task, model.decide

        def __call__(self, x: Tensor) -> Tensor:
            return self.model(chain(x, seeds[: len(x)]))

    from medseg_attack.metrics.harm import harm

    with frozen(blobs.healthy()) as model:
        behind = Behind(model)
        plain, aware = (
            registry.build("pgd(linf(0.02), steps=15)", "attack")(victim, batch.image, batch.target, seeds).image
            for victim in (model, behind)
        )
        before = harm(model.decide(model(plain)), batch.target).mean()
        after, known = (harm(model.decide(behind(x)), batch.target).mean() for x in (plain, aware))
    assert after < before  # not all of it survives
    assert known > after


def test_a_link_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="expected links of reacquisition, got 'jpeg200'"):
        registry.build("reacquisition(links=('jpeg200',))", "defence")
