"""AdvGAN: what its generator may do before and after it is trained."""

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.universal.advgan import AdvGan, Generator, attended
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import frozen
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Batch

SEEDS = [1, 2, 3]
FITTED = AdvGan(Linf(0.05), steps=30, rate=3e-3)


@pytest.fixture(scope="module")
def learned() -> dict[str, Tensor]:
    with frozen(blobs.healthy()) as model:
        return FITTED.fit(model, [blobs.batch(4)], 3)


def test_a_trained_generator_does_more_than_noise_to_images_it_has_not_met(learned: dict[str, Tensor]) -> None:
    batch = blobs.batch(4)
    turned = Batch(batch.image.flip(2), batch.target.flip(2), batch.cases)
    with frozen(blobs.healthy()) as model:
        harm = FITTED.with_learned(learned)(model, turned.image, turned.target, [1, 2, 3, 4]).harm
        noise = registry.build("noise(linf(0.05))", "attack")(model, turned.image, turned.target, [1, 2, 3, 4]).harm
        pgd = registry.build("pgd(linf(0.05))", "attack")(model, turned.image, turned.target, [1, 2, 3, 4]).harm
    assert harm.mean() > noise.mean() + 0.02
    assert harm.mean() <= pgd.mean() + 1e-6  # an attack on the image itself is stronger


def test_a_last_layer_of_zeros_is_the_identity(learned: dict[str, Tensor]) -> None:
    batch = blobs.batch(3)
    zeros = {name: 0 * tensor if name.startswith("last") else tensor for name, tensor in learned.items()}
    with frozen(blobs.healthy()) as model:
        result = FITTED.with_learned(zeros)(model, batch.image, batch.target, SEEDS)
    assert torch.equal(result.image, batch.image)


def test_weights_may_come_in_any_order_as_from_a_file(learned: dict[str, Tensor]) -> None:
    batch = blobs.batch(2)
    with frozen(blobs.healthy()) as model:
        first, again = (
            FITTED.with_learned(weights)(model, batch.image, batch.target, [1, 2]).image
            for weights in (learned, dict(sorted(learned.items())))
        )
    assert torch.equal(first, again)


def test_attention_on_nothing_is_the_identity_and_else_lies_on_organs() -> None:
    batch = blobs.batch(3)
    attack = AdvGan(Linf(0.05), steps=3, attention=True)
    with frozen(blobs.healthy()) as model:
        ready = attack.with_learned(attack.fit(model, [batch], 0))
        x = ready(model, batch.image, batch.target, SEEDS).image
        weight = attended(model(batch.image)[:, list(model.task.scored)].sigmoid().amax(1, keepdim=True))
    change = (x - batch.image).abs()
    assert (change <= 0.05 * weight + 1e-6).all()
    assert attended(torch.zeros(1, 1, 9, 9)).abs().max() == 0
    assert attended(torch.ones(1, 1, 19, 19))[0, 0, 9, 9].item() == pytest.approx(1)
    assert attended(torch.ones(1, 1, 19, 19, 19))[0, 0, 9, 9, 9].item() == pytest.approx(1)


def test_the_same_seed_trains_the_same_generator() -> None:
    short = AdvGan(Linf(0.05), steps=2)
    with frozen(blobs.healthy()) as model:
        first, again, other = (short.fit(model, [blobs.batch(2)], seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("shape", [(12, 10), (7, 9), (1, 5), (5, 6, 7)])
def test_any_grid_has_a_change_of_its_own_shape(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 2, *shape)
    assert Generator(2, len(shape))(image).shape == image.shape


def test_other_images_than_it_was_fitted_on_are_refused(learned: dict[str, Tensor]) -> None:
    attack = FITTED.with_learned(learned)
    volume = torch.rand(1, 1, 4, 5, 6)
    with (
        frozen(blobs.healthy()) as model,
        pytest.raises(InputError, match="expected images of 2 axes and 1 channels, as advgan was fitted on"),
    ):
        attack(model, volume, volume > 0.5, [1])


@pytest.mark.parametrize("text", ["advgan(steps=0)", "advgan(rate=0)", "advgan(realism=-1)"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        registry.build(text, "attack")


def test_it_is_not_run_before_it_is_fitted_nor_fitted_on_nothing() -> None:
    batch = blobs.batch(1)
    with frozen(blobs.healthy()) as model:
        with pytest.raises(InputError, match="has to be fitted first"):
            FITTED(model, batch.image, batch.target, [1])
        with pytest.raises(InputError, match="expected images to fit"):
            FITTED.fit(model, [], 0)
