"""Attacks on single pixels: what they can flip can be written down, and a pixel counts once."""

import pytest
import torch
from helpers.oracle_scene import ORGAN, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.blackbox.single_pixel import Pixels
from medseg_attack.errors import InputError
from medseg_attack.threat.balls.norms import L0

SEEDS = [1, 2, 3]


@pytest.mark.parametrize("text", ["single_pixel({}, queries=960)", "local_search({}, queries=960)"])
def test_each_pixel_of_the_budget_flips_one_entry_of_a_pointwise_model(text: str) -> None:
    """At the far end of the window every pixel crosses 1/2; the near end changes nothing."""
    model, image = oracle(ORGAN), images()
    target = truth(model, image)
    result = registry.build(text.format("pixels(5/480)"), "attack")(model, image, target, SEEDS)
    flipped = (model.decide(model(result.image)) != target).flatten(1).sum(1)
    assert flipped.tolist() == [5, 5, 5]
    assert (result.image != image).flatten(1).sum(1).tolist() == [5, 5, 5]
    changed = result.image != image
    assert set(result.image[changed].tolist()) <= {0.0, 1.0}
    assert torch.equal((result.image - 0.5).sign()[changed], -(image - 0.5).sign()[changed])


def test_the_kept_pixels_are_those_that_gain_most() -> None:
    """A score that is the image times weights: the best pixels are the largest weights, each at its better end."""
    image = torch.full((1, 1, 4, 5), 0.5, dtype=torch.float64)
    weights = torch.arange(-10.0, 10.0).view(1, 1, 4, 5).double()

    def weighted(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return ((log_odds / 10) * weights).flatten(1).sum(1)

    from medseg_attack.attacks.blackbox.single_pixel import SinglePixel

    attack = SinglePixel(Pixels(3 / 20), weighted, queries=42)
    places, ends = torch.arange(20).repeat(2)[None], torch.tensor([0.0, 1.0]).repeat_interleave(20)[None]
    gains = (weights.flatten()[places[0]] * (ends[0] - 0.5))[None]
    x = attack._together(image, places, ends, gains)
    assert (x != image).flatten().nonzero().flatten().tolist() == [0, 1, 19]
    assert x.flatten()[[0, 1, 19]].tolist() == [0.0, 0.0, 1.0]


def test_a_search_nearby_stays_near_what_helped() -> None:
    """Only a spot counts, so that after the first hit pixels come from its neighbourhood."""
    image = torch.full((1, 1, 20, 20), 0.4, dtype=torch.float64)
    target = torch.ones(1, 1, 20, 20, dtype=torch.bool)

    def spot(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return log_odds[:, :, 8:13, 8:13].flatten(1).sum(1)

    from medseg_attack.attacks.blackbox.local_search import LocalSearch
    from medseg_attack.attacks.blackbox.single_pixel import SinglePixel

    nearby = LocalSearch(Pixels(0.05), spot, queries=441, candidates=10)
    anywhere = SinglePixel(Pixels(0.05), spot, queries=441)
    heights = []
    for attack in (nearby, anywhere):
        shown: list[float] = []
        attack = type(attack)(attack.ball, lambda *args, shown=shown: _noted(spot(*args), shown), queries=441)
        attack(oracle(ORGAN), image, target, [5])
        heights.append(max(shown))
    assert heights[0] > heights[1]


def _noted(height: Tensor, shown: list[float]) -> Tensor:
    shown.append(height.item())
    return height


def test_a_pixel_counts_once_for_all_channels() -> None:
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = image.clone()
    x[:, :, 1, 2] = 0
    assert Pixels().size(x, image).item() == pytest.approx(1 / 20)
    assert L0().size(x, image).item() == pytest.approx(3 / 60)
    x[:, 0, 0, 0] = 1
    kept = Pixels(1 / 20).project(x, image)
    assert (kept != image).any(1).sum() == 1


def test_volumes_are_searched_in_all_axes() -> None:
    image = torch.full((1, 1, 5, 6, 7), 0.4, dtype=torch.float64)
    model = oracle(ORGAN)
    for text in ("single_pixel(pixels(0.05), queries=60)", "local_search(pixels(0.05), queries=60)"):
        result = registry.build(text, "attack")(model, image, truth(model, image), [3])
        assert 1 <= (result.image != image).sum() <= 10
        assert result.harm.item() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("single_pixel(queries=2)", "queries"),
        ("single_pixel(linf)", "expected a ball that counts pixels"),
        ("local_search(queries=11)", "expected queries of 12 or more for a round of 10 candidates, got 11"),
        ("local_search(candidates=0)", "candidates"),
        ("pixels(2)", "eps"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "ball" if text.startswith("pixels") else "attack")
