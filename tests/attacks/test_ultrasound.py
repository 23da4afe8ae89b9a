"""SSAA and FDUA: identities, magnitudes that are kept, and where the change lies."""

import math

import pytest
import torch
from helpers.oracle_scene import ORGAN, images, oracle, truth

from medseg_attack import registry
from medseg_attack.attacks.blackbox.fdua import Phase, in_band, middle, turned
from medseg_attack.attacks.blackbox.ssaa import outline_band, speckle
from medseg_attack.errors import InputError

SEEDS = [1, 2, 3]


@pytest.mark.parametrize("shape", [(24, 20), (9, 15), (6, 7, 8)])
def test_turned_phases_keep_magnitudes_and_the_image_stays_real(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes = tuple(range(2, image.ndim))
    x = turned(image, 0.5, [4, 5])
    before, after = torch.fft.fftn(image, dim=axes), torch.fft.fftn(x, dim=axes)
    torch.testing.assert_close(after.abs(), before.abs(), atol=1e-10, rtol=0)
    turn = torch.where(before.abs() > 1e-9, torch.angle(after / before), 0.0)
    assert turn.abs().max() <= 0.5 + 1e-9
    assert turn.abs().max() > 0.2
    band = in_band(image).expand_as(turn)
    assert turn[~band].abs().max() < 1e-6
    assert not torch.equal(x[0], x[1])


def test_no_turn_is_no_change() -> None:
    image = images()
    torch.testing.assert_close(turned(image, 0.0, SEEDS), image, atol=1e-15, rtol=0)


def test_a_change_is_as_large_as_the_turn_of_all_middle_frequencies() -> None:
    """All phases turned by t, up and down: a change of exactly 2 sin(t / 2) times their length."""
    image = images(0.2)
    change = 2 * math.sin(0.15) * middle(image)
    assert Phase().size(image + change, image).tolist() == pytest.approx([0.3] * 3)
    assert Phase().size(image, image).tolist() == [0] * 3
    flat = torch.full_like(image, 0.5)
    assert Phase().size(flat + 0.1, flat).tolist() == [math.inf] * 3
    drawn = turned(image, 0.3, SEEDS)
    assert (Phase().size(drawn, image) <= 0.3).all()


def test_speckle_lies_at_the_outline_and_leaves_black_alone() -> None:
    image = torch.full((1, 1, 40, 40), 0.6, dtype=torch.float64)
    image[:, :, :4] = 0
    target = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    band = outline_band(torch.zeros(1, 1, 40, 40, dtype=torch.bool).index_fill_(3, torch.arange(20, 40), True))
    assert band.amax() == 1
    assert band[0, 0, 0, 20] == 1  # the outline itself
    assert band[0, 0, 0, 23] == pytest.approx(math.exp(-0.5))  # three pixels further
    assert outline_band(target).amin() == 1  # nowhere an outline
    noise = speckle(image, [7])
    assert noise.abs().max() <= 1
    neighbours = torch.corrcoef(torch.stack([noise[..., 1:].flatten(), noise[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.7
    result = registry.build("ssaa(linf(0.1), queries=5)", "attack")(oracle(ORGAN), image, target, [1])
    assert torch.equal(result.image[:, :, :4], image[:, :, :4])


@pytest.mark.parametrize("name", ["ssaa", "fdua"])
def test_more_draws_never_do_less(name: str) -> None:
    model, image = oracle(ORGAN), images(0.05)
    target = truth(model, image)
    few, many = (registry.build(f"{name}(queries={n})", "attack")(model, image, target, SEEDS) for n in (5, 40))
    assert (many.harm >= few.harm).all()
    assert (many.harm > 0).all()


def test_volumes_have_outlines_and_grain_in_all_axes() -> None:
    image = torch.full((1, 1, 8, 12, 12), 0.52, dtype=torch.float64)
    model = oracle(ORGAN)
    for text in ("ssaa(linf(0.2), queries=9)", "fdua(phase(1), queries=9)"):
        result = registry.build(text, "attack")(model, image, truth(model, image), [1])
        assert torch.isfinite(result.image).all()
        assert (result.harm > 0).all() == text.startswith("ssaa")  # an image of one intensity has no phases


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ssaa(queries=1)", "queries"),
        ("fdua(linf)", "expected the ball phase for fdua"),
        ("fdua(queries=0)", "queries"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")
