"""The strongest attack: its cost, its strength at that cost, and whose Dice it lowers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from helpers import blobs
from helpers.oracle_scene import ORGAN, SHAPE, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.composed.strongest import Ascent, Strongest, _Scene
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.keeping import Kept, units
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import in_batches
from medseg_attack.metrics.harm import harm, harm_of
from medseg_attack.metrics.overlap import counts
from medseg_attack.models.segmodel import frozen
from medseg_attack.numerics.samples import gradient_of
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Adversarial, AroundModel, Batch, Image, LogOdds, Mask, Model, PerSample, Setting, Task

SEEDS = list(range(8))


@pytest.mark.parametrize("gradients", [1, 2, 7, 20, 50, 121])
def test_its_cost_is_told_in_gradients(gradients: int) -> None:
    batch = blobs.batch(3)
    with frozen(blobs.healthy()) as net:
        model = CountedModel(net)
        result = Strongest(Linf(0.01), gradients)(model, batch.image, batch.target, SEEDS)
    assert model.backwards == gradients
    assert model.forwards <= max(1.2 * gradients, gradients + 3)
    assert result.passes is not None
    assert result.passes.tolist() == [[model.forwards, gradients]] * 3


def test_no_pass_is_spent_on_images_on_which_every_organ_is_lost() -> None:
    image = torch.cat((images(0.1)[:2], images(0.9)[:1]))
    target = truth(oracle(ORGAN), image)
    result = Strongest(Linf(0.2), 120)(oracle(ORGAN), image, target, SEEDS[:3])
    assert result.harm.tolist()[:2] == [1, 1]
    assert result.harm[2] < 1
    assert result.passes is not None
    assert result.passes.tolist() == [[74, 72], [74, 72], [123, 120]]  # the first two took the first ascent alone
    alone = Strongest(Linf(0.2), 120)(oracle(ORGAN), image[:2], target[:2], SEEDS[:2])
    assert alone.passes is not None
    assert alone.passes[:, 1].max() < 72  # where nothing is left, an ascent ends


@pytest.mark.parametrize(("gradients", "ascents"), [(119, 1), (120, 2), (399, 2), (400, 3), (501, 3)])
def test_ascents_grow_in_number_with_the_gradients(gradients: int, ascents: int) -> None:
    """Each ends with a forward pass of its own."""
    model, image = oracle(ORGAN), images(0.9)[:1]
    result = Strongest(Linf(0.01), gradients)(model, image, truth(model, image), SEEDS[:1])
    assert result.passes is not None
    assert result.passes.tolist() == [[gradients + 1 + ascents, gradients]]


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_last_of_three_ascents_ends_at_five_times_the_temperature(progress: float) -> None:
    """Log-odds as many times larger as the temperature are the same probabilities."""
    batch = blobs.batch(3)
    with frozen(blobs.healthy()) as model:
        log_odds = model(batch.image)
        unit = torch.arange(3)
        scene = _Scene(model, Linf(0.01), batch.image, batch.target, unit, log_odds.abs().flatten(1).mean(1), unit)
    first, _, last = Strongest(Linf(0.01), 400).ascents
    hotter = scene._dice(5**progress * log_odds, progress, last)
    torch.testing.assert_close(hotter, scene._dice(log_odds, progress, first))
    same = torch.allclose(scene._dice(log_odds, progress, last), scene._dice(log_odds, progress, first))
    assert same is (progress == 0)


@pytest.mark.parametrize("number", range(3))
def test_a_sharp_end_knows_an_absent_organ_without_a_pixel(number: int) -> None:
    """Eight pixels that are nearly foreground are no mask: Dice of an organ that the truth lacks is 1 still.

    The last of three ascents ends softer, so that it leads to other images.
    """
    ascent = Strongest(Linf(0.01), 400).ascents[number]
    log_odds = torch.full((1, 1, 4, 4), -1.0)
    log_odds[..., :2] = -0.05
    target = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    scene = _Scene(oracle(ORGAN), Linf(0.01), log_odds, target, torch.arange(1), torch.ones(1), torch.arange(1))

    def dice() -> float:
        mean = scene._dice(log_odds, 1.0, ascent)
        return (mean.exp() if ascent.log else mean).item()

    assert (dice() > 0.5) is (number < 2)
    log_odds[..., 0, 0] = 0.2
    assert dice() < 0.5 + 0.01


def test_a_soft_start_has_a_slope_where_an_organ_is_certain() -> None:
    """A pixel as certain as its organ is on average: from half the temperature the slope would be a third."""
    log_odds = torch.ones(1, 1, 2, 2)
    target = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    scene = _Scene(oracle(ORGAN), Linf(0.01), log_odds, target, torch.arange(1), torch.ones(1), torch.arange(1))

    def slope(ascent: Ascent) -> float:
        x = log_odds.clone().requires_grad_()
        return gradient_of(scene._dice(x, 0.0, ascent), x).sum().item()

    assert slope(Ascent(1.0)) > 2 * slope(Ascent(1.0, softest=0.25))


MEMBERS = (
    "apgd(objective=soft_dice, steps={})",
    "apgd(objective=masked_bce, radii=(2, 1.5, 1), steps={})",
    "pgd(objective=soft_dice, steps={})",
    "pgd(objective=bce, steps={})",
)


@pytest.mark.parametrize("eps", [0.01, 0.02])
def test_at_equal_gradients_no_other_attack_does_more(eps: float) -> None:
    batch = blobs.batch(8)

    def mean_harm(text: str) -> float:
        attack = registry.with_eps(registry.build(text, "attack"), eps)
        with frozen(blobs.healthy()) as model:
            return attack(model, batch.image, batch.target, SEEDS).harm.mean().item()

    own = mean_harm("strongest(gradients=60)")
    others = {text: mean_harm(text.format(60)) for text in MEMBERS} | {"sea": mean_harm("sea(steps=15)")}
    assert own >= max(others.values()) - 0.003, others


@dataclass(frozen=True, eq=False)
class Scaled(AroundModel):
    """A model of which every log-odds is a multiple of another's: it decides the same everywhere."""

    model: Model
    factor: float

    def __call__(self, image: Image) -> LogOdds:
        return self.factor * self.model(image)


@pytest.mark.parametrize("factor", [0.125, 64.0])
def test_it_does_not_matter_how_certain_a_network_says_it_is(factor: float) -> None:
    batch = blobs.batch(3)
    with frozen(blobs.healthy()) as model:
        plain, scaled = (
            Strongest(Linf(0.01), 12)(net, batch.image, batch.target, SEEDS) for net in (model, Scaled(model, factor))
        )
    torch.testing.assert_close(plain.harm, scaled.harm)
    torch.testing.assert_close(plain.image, scaled.image)


def volumes_of(batch: Batch, slices: int) -> Batch:
    """The batch as slices of volumes, so many of each."""
    cases = tuple(replace(case, volume=f"volume {n // slices}") for n, case in enumerate(batch.cases))
    return replace(batch, cases=cases)


def volume_harm(model: Model, image: Image, target: Mask, slices: int) -> PerSample:
    pixels = counts(model.decide(model(image)), target)[:, list(model.task.scored)]
    return harm_of(pixels.unflatten(0, (-1, slices)).sum(1))


def test_slices_of_a_volume_lower_its_dice_more_than_each_their_own() -> None:
    """Three slices of four hold no organ: a false pixel is all to such a slice, and little to the volume."""
    batch = volumes_of(blobs.batch(16), 4)
    empty = torch.tensor([False, True, True, True] * 4).view(-1, 1, 1, 1)
    image, target = torch.where(empty, 0.3, batch.image), batch.target & ~empty
    harms = {}
    with frozen(blobs.healthy()) as model:
        for unit in ("slice", "volume"):
            attack = bind(Strongest(Linf(0.05), 40, unit), Setting(blobs.TASK, batch.cases))
            harms[unit] = volume_harm(model, attack(model, image, target, range(16)).image, target, 4)
    more = harms["volume"] - harms["slice"]
    assert (more > 0).all()
    assert more.mean() > 0.01


@pytest.mark.parametrize("radii", [(1.0,), (2.0, 1.5, 1.0)])
def test_apgd_keeps_iterates_that_lower_the_dice_of_the_volume_where_that_is_asked(radii: tuple[float, ...]) -> None:
    batch = volumes_of(blobs.batch(8), 4)
    empty = torch.tensor([False, True, True, True] * 2).view(-1, 1, 1, 1)
    image, target = torch.where(empty, 0.3, batch.image), batch.target & ~empty
    setting, harms = Setting(blobs.TASK, batch.cases), {}
    with frozen(blobs.healthy()) as model:
        for unit in ("slice", "volume"):
            attack = bind(APGD(Linf(0.2), bce, 8, 1, radii, unit), setting)
            result = attack(model, image, target, SEEDS)
            assert (result.size <= 0.2 + 1e-6).all()
            torch.testing.assert_close(result.harm, harm(model.decide(model(result.image)), target).to(image))
            harms[unit] = volume_harm(model, result.image, target, 4)
    assert (harms["volume"] > harms["slice"] + 0.01).all()


TASK = Task("two", ("a", "b"))


def masks(seed: int, n: int = 6) -> Tensor:
    return torch.rand(n, 2, 5, 5, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_the_harm_of_a_unit_never_falls_and_is_that_of_what_is_kept(seed: int) -> None:
    unit, target = torch.tensor([0, 0, 0, 1, 1, 2]), masks(100 + seed)
    offers = [masks(1000 * seed + n) for n in range(30)]
    image = torch.zeros(6, 1, 5, 5)
    kept, before = Kept(TASK, image, target, target, unit), torch.zeros(6)
    for n, pred in enumerate(offers, start=1):
        kept.offer(torch.full_like(image, n), pred, torch.arange(6))
        assert (kept.harm >= before).all()
        before = kept.harm
    chosen = [target, *offers]
    pred = torch.stack([chosen[int(kept.image[n].max())][n] for n in range(6)])
    pooled = counts(pred, target)
    for n in range(6):
        torch.testing.assert_close(kept.harm[n], harm_of(pooled[unit == unit[n]].sum(0, keepdim=True))[0])
    torch.testing.assert_close(kept.own_harm, harm(pred, target))


def test_one_exchange_is_kept_where_it_is_the_best_of_all_pairs() -> None:
    """Two slices, one offer: against all four choices by hand."""
    unit = torch.tensor([0, 0])
    for seed in range(40):
        target, first, second = (masks(seed * 3 + n, 2) for n in range(3))
        kept = Kept(TASK, torch.zeros(2, 1, 5, 5), first, target, unit)
        before = kept.harm[0]
        kept.offer(torch.ones(2, 1, 5, 5), second, torch.arange(2))
        every = [
            harm_of(counts(torch.stack([(first, second)[a][0], (first, second)[b][1]]), target).sum(0, keepdim=True))[0]
            for a, b in product((0, 1), repeat=2)
        ]
        alone = max(every[1], every[2])  # with one slice exchanged
        assert kept.harm[0] >= before
        assert kept.harm[0] <= max(every) + 1e-7
        assert kept.harm[0] > before or alone <= before or every[3] <= before


def test_slices_by_themselves_are_units_where_nobody_knows_their_volume() -> None:
    image = torch.zeros(4, 1, 2, 2)
    cases = volumes_of(blobs.batch(4), 2).cases
    assert units("volume", cases, image).tolist() == [0, 0, 1, 1]
    assert units("slice", cases, image).tolist() == [0, 1, 2, 3]
    assert units("volume", (), image).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="one of slice, volume, got 'patient'"):
        registry.build("strongest(unit='patient')", "attack")


def test_batches_hold_whole_volumes_where_they_fit() -> None:
    def lengths(volumes: list[int], size: int) -> list[list[int]]:
        cases = [replace(case, volume=str(v)) for v, n in enumerate(volumes) for case in [blobs.case(0)] * n]
        batches = in_batches(cases, size)
        assert [case for batch in batches for case in batch] == cases
        return [
            [[case.volume for case in batch].count(v) for v in dict.fromkeys(c.volume for c in batch)]
            for batch in batches
        ]

    assert lengths([10, 10, 10], 16) == [[10], [10], [10]]
    assert lengths([3, 4, 5, 6], 8) == [[3, 4], [5], [6]]
    assert lengths([20], 16) == [[10], [10]]
    assert lengths([2, 20, 3], 8) == [[2, 6], [7], [7], [3]]
    assert lengths([1, 1, 1], 2) == [[1, 1], [1]]


def test_a_ball_of_length_is_kept() -> None:
    batch = blobs.batch(2)
    with frozen(blobs.healthy()) as model:
        result = Strongest(L2(0.5), 8)(model, batch.image, batch.target, SEEDS)
    assert (result.size <= 0.5 + 1e-6).all()
    assert (result.harm > 0).all()


@dataclass(frozen=True)
class Painted:
    """Finds the images that it is given; on the oracle they are their own masks."""

    images: tuple[Tensor, ...]
    ball: Linf = Linf(0.5)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        worst = torch.stack([self.images[SEEDS.index(seed)] for seed in seeds])
        pred = model.decide(model(worst))
        return Adversarial(worst, harm(pred, target), self.ball.size(worst, image))


@pytest.mark.parametrize(("unit", "choice"), [("slice", "lost"), ("volume", "blown up")])
def test_members_of_a_suite_compete_for_the_dice_of_the_volume_where_that_is_asked(unit: str, choice: str) -> None:
    """The second slice has one pixel of organ: its loss is all to the slice, and nearly nothing to the volume."""
    large, small, grey = torch.zeros(3, 1, *SHAPE, dtype=torch.float64).fill_(0.3).unbind()
    large[:, :12], small[:, 0, 0] = 0.7, 0.7
    blown_up = torch.full_like(small, 0.7)
    image = torch.stack((large, small))
    batch = volumes_of(blobs.batch(2), 2)
    suite = BestOf((Painted((large, grey)), Painted((large, blown_up))), unit)
    model = oracle(ORGAN)
    bound = bind(suite, Setting(ORGAN, batch.cases))
    result = bound(model, image, truth(model, image), SEEDS[:2])
    assert torch.equal(result.image, torch.stack((large, grey if choice == "lost" else blown_up)))
    torch.testing.assert_close(result.harm.to(image), harm(truth(model, result.image), truth(model, image)).to(image))


def test_suites_hand_their_unit_on() -> None:
    suite = registry.build("sea(steps=8, unit='volume')", "attack")
    assert suite.unit == "volume"
    assert {member.unit for member in suite.attacks} == {"volume"}
    assert registry.build("sea", "attack").unit == "slice"  # as published


def test_volumes_have_no_worst_where_anatomy_moves() -> None:
    with pytest.raises(InputError, match="write it"):
        registry.build("best_of((deformation,), unit='volume')", "attack")
    with pytest.raises(InputError, match="write it"):
        registry.build("apgd(displacement, unit='volume')", "attack")
