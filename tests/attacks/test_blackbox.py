"""Attacks without gradients: what they may see, how often they ask, and what they cannot do better than the optimum."""

from typing import Any

import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.blackbox import boundary
from medseg_attack.attacks.blackbox.boundary import HALVINGS, LEAST, STARTS, Boundary
from medseg_attack.attacks.blackbox.gradient_estimates import SPSA, ZOO, _ascend, by_coordinates, by_signs
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.fields import stretched, zeros
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.types import Adversarial, AroundModel, Model, Task

ONE = Task("one", ("organ",))
SEEDS = [3, 4, 5]
IMAGE = torch.rand(3, 1, 8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
SMALL = {
    "zoo": "zoo(queries=60, coordinates=6, starts=3)",
    "spsa": "spsa(queries=60, directions=3)",
    "boundary": "boundary(queries=60)",
}


def oracle() -> SegModel:
    model: SegModel = registry.build("oracle", "model")(ONE).double().eval()
    return model


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise AssertionError("a black box was differentiated")


class Closed(SegModel):
    """An oracle that no gradient comes out of, and that notices if one is prepared."""

    def forward(self, image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not image.requires_grad
        return NoWayBack.apply(super().forward(image))


@pytest.mark.parametrize("text", SMALL.values())
def test_nothing_is_differentiated(text: str) -> None:
    model = Closed(oracle().net, ONE)
    result = registry.build(text, "attack")(model, IMAGE, IMAGE >= 0.5, SEEDS)
    assert torch.isfinite(result.image).all()
    with pytest.raises(AssertionError), torch.enable_grad():
        registry.build("fgsm", "attack")(model, IMAGE, IMAGE >= 0.5, SEEDS)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (ZOO(queries=60, coordinates=6, starts=3), 1 + 3 + 4 * 13),
        (ZOO(queries=14, coordinates=6, starts=0), 14),
        (SPSA(queries=60, directions=3), 1 + 8 + 7 * 7),
        (Boundary(queries=60), 60),
        (Boundary(queries=LEAST), 1 + STARTS + HALVINGS + 2),
    ],
)
def test_queries_are_counted_and_never_exceeded(attack: Any, expected: int) -> None:
    metered = CountedModel(oracle())
    attack(metered, IMAGE, IMAGE >= 0.5, SEEDS)
    assert (metered.forwards, metered.backwards) == (expected, 0)
    assert metered.forwards <= attack.queries


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("queries", [0, -1, 1, 5])
def test_a_budget_that_allows_no_step_is_refused(name: str, queries: int) -> None:
    with pytest.raises(InputError, match=rf"expected queries >= (\d+) .*, got {queries}; write queries=\1 or more"):
        registry.build(f"{name}(queries={queries})", "attack")


@pytest.mark.parametrize("width", [1e-2, 1e-7])
def test_differences_along_coordinates_are_the_gradient(width: float) -> None:
    """20 of its coordinates, in float64, on a model that is not linear."""
    model = blobs.healthy_net()
    batch = blobs.batch(2)
    image, target = batch.image[:, :, 8:24, 8:24].double(), batch.target[:, :, 8:24, 8:24]
    net = SegModel(model, blobs.TASK)
    double = SegModel(_double(net), blobs.TASK)

    def score(change: Tensor) -> Tensor:
        return bce(double(image + change), target)

    origin = torch.zeros_like(image).requires_grad_()
    (exact,) = torch.autograd.grad(score(origin).sum(), origin)
    with torch.no_grad():
        estimate = by_coordinates(score, torch.zeros_like(image), width, [1, 2], 20)
    asked = estimate != 0
    assert asked.flatten(1).sum(1).tolist() == [20, 20]
    assert not torch.equal(asked[0], asked[1])
    wrong = (estimate - exact)[asked].norm() / exact[asked].norm()
    assert wrong < (0.2 if width > 1e-3 else 1e-2)


def _double(model: SegModel) -> torch.nn.Module:
    import copy

    return copy.deepcopy(model.net).double().eval()


def test_the_mean_of_differences_along_signs_is_the_gradient() -> None:
    slope = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
    estimate = by_signs(lambda c: (slope * c).flatten(1).sum(1), torch.zeros(1, 1, 3, 4).double(), 0.1, [0], 4000)
    torch.testing.assert_close(estimate, slope, atol=0.15, rtol=0)  # its standard error is 2 / sqrt(4000) = 0.03


@pytest.mark.parametrize("name", ["zoo", "spsa", "boundary"])
def test_no_black_box_beats_the_optimum_and_each_gets_near(name: str) -> None:
    """On the oracle exactly the pixels within eps of the threshold can be flipped.

    With as many coordinates as there are, ZOO's differences are the gradient of a linear objective: it gets there.
    SPSA's estimate of each of d = 48 slopes from n directions is that slope (of size 1) plus the 47 others with
    random signs, of deviation sqrt(47 / n): with n = 64 a sign is wrong once in 8 steps; averaged with Adam's
    weights over five steps once in 200, over the ten that the budget allows once in 4800.
    """
    eps, model = 0.1, oracle()
    target = IMAGE >= 0.5
    many = {
        "zoo": f"zoo(linf({eps}), margin, queries=500, coordinates=48, grid=0, step_size=1.0)",
        "spsa": f"spsa(linf({eps}), margin, queries=1300, directions=64, grid=0, step_size=0.5)",
        "boundary": f"boundary(linf({eps}), queries=900, grid=0, goal=0.9)",
    }[name]
    result = registry.build(many, "attack")(model, IMAGE, target, SEEDS)
    flipped = model.decide(model(result.image)) != target
    within = (IMAGE - 0.5).abs() <= eps
    if name == "boundary":
        assert not (flipped & ~within).any()
        assert (flipped.flatten(1).sum(1) >= 1).all()
    else:
        assert torch.equal(flipped, within)


@pytest.mark.parametrize("name", ["zoo", "spsa"])
def test_more_queries_never_do_less(name: str) -> None:
    batch, model = blobs.batch(3), blobs.healthy()
    few, many = (
        registry.build(f"{name}(linf(0.08), queries={n})", "attack")(model, batch.image, batch.target, SEEDS).harm
        for n in (70, 210)
    )
    clean = registry.build("clean", "attack")(model, batch.image, batch.target, SEEDS).harm
    assert (few >= clean).all()
    assert (many >= few).all()


@pytest.mark.parametrize("name", ["zoo", "spsa"])
def test_scores_help_more_than_a_random_draw_does(name: str) -> None:
    batch, model = blobs.batch(3), blobs.healthy()
    harms = registry.build(f"{name}(linf(0.08), queries=170)", "attack")(model, batch.image, batch.target, SEEDS).harm
    draws = []  # corners of the ball in the attack's own space: coarse changes hurt this network more than fine ones
    for seed in range(170):
        signs = torch.rand(zeros(batch.image, 8).shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        change = 0.08 * stretched(signs.float() * 2 - 1, (32, 32))
        draws.append(harm(model.decide(model((batch.image + change).clamp(0, 1))), batch.target))
    assert harms.mean() > torch.stack(draws).mean(0).mean()


def test_the_walk_sees_masks_alone() -> None:
    """A model of the same masks whose scores say nothing is attacked with the same bits."""

    class Hard(SegModel):
        def forward(self, image: Tensor) -> Tensor:
            return torch.where(super().forward(image) >= 0, 1.0, -1.0).to(image)

    attack = Boundary(Linf(0.2), queries=80)
    soft, hard = (attack(m, IMAGE, IMAGE >= 0.5, SEEDS) for m in (oracle(), Hard(oracle().net, ONE)))
    assert torch.equal(soft.image, hard.image)
    spsa = SPSA(Linf(0.2), margin, queries=80)
    apart = [spsa(m, IMAGE, IMAGE >= 0.5, SEEDS).image for m in (oracle(), Hard(oracle().net, ONE))]
    assert not torch.equal(*apart)


@pytest.mark.parametrize("ball", [Linf, L2])
def test_a_walk_that_reaches_the_ball_says_so_and_one_that_cannot_says_no(ball: Any) -> None:
    """All of an organ is 0.1 from the threshold: with less than that nothing flips, with more everything does."""
    image = torch.full((2, 1, 6, 5), 0.6, dtype=torch.float64)
    target = torch.ones(2, 1, 6, 5, dtype=torch.bool)
    length = 1.0 if ball is Linf else 30**0.5
    near = Boundary(ball(0.09 * length * 0.5), queries=400, grid=1)(oracle(), image, target, SEEDS[:2])
    far = Boundary(ball(0.16 * length), queries=400, grid=1)(oracle(), image, target, SEEDS[:2])
    assert near.success is not None
    assert far.success is not None
    assert near.success.tolist() == [False, False]
    assert far.success.tolist() == [True, True]
    assert far.harm.tolist() == [1.0, 1.0]
    assert torch.equal(near.harm, harm(oracle().decide(oracle()(near.image)), target).double())


@pytest.mark.parametrize("ball", ["linf(0.03)", "l2(0.6)", "gain(0.1)"])
def test_a_step_of_the_walk_is_short_beside_the_way_that_is_left(ball: str) -> None:
    """Its noise is a third of that way in any norm: a step leads on, and not into the noise alone."""
    batch, model, asked = blobs.batch(3), blobs.healthy(), list[Tensor]()

    class Asked(AroundModel):
        def __init__(self) -> None:
            self.model = model

        def __call__(self, image: Tensor) -> Tensor:
            asked.append(image)
            return model(image)

    attack = registry.build(f"boundary({ball}, queries=15)", "attack")  # one step, before the last image is judged
    clean = judge(model, attack.ball, batch.image, batch.image, batch.target)
    walk = attack._start(model, batch.image, batch.target, SEEDS, 1 - 0.5 * (1 - clean.harm))
    attack(Asked(), batch.image, batch.target, SEEDS)
    before, after = ((x - batch.image).flatten(1) for x in (walk.image, asked[13]))
    assert (torch.cosine_similarity(before, after) > 0.7).all()


def test_success_is_of_the_image_that_is_returned() -> None:
    batch, model = blobs.batch(3), blobs.healthy()
    result = Boundary(Linf(0.004), queries=60)(model, batch.image, batch.target, SEEDS)
    assert result.success is not None
    need = 1 - 0.5 * (1 - registry.build("clean", "attack")(model, batch.image, batch.target, SEEDS).harm)
    assert torch.equal(result.success, result.harm >= need)
    assert not result.success.any()
    assert (result.size <= 0.004 + 1e-7).all()


@pytest.mark.parametrize("text", SMALL.values())
def test_volumes_are_attacked_by_the_same_code(text: str) -> None:
    image = torch.rand(2, 1, 4, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model: Model = oracle()
    result = registry.build(text, "attack")(model, image, image >= 0.5, SEEDS[:2])
    assert result.image.shape == image.shape
    assert (result.image - image).abs().max() <= 8 / 255 + 1e-12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoo(coordinates=0)", "coordinates >= 1"),
        ("zoo(probe=0.0)", r"probe in \(0, inf\)"),
        ("spsa(grid=-1)", "grid >= 0"),
        ("spsa(step_size=0.0)", r"step_size in \(0, inf\)"),
        ("boundary(goal=0.0)", r"goal in \(0, 1\)"),
        ("boundary(grid=-2)", "grid >= 0"),
    ],
)
def test_bad_options_are_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


def test_the_walk_begins_next_to_the_decision() -> None:
    """The model has the organ below 0.7; on the way from white to an image of 0.5 that is a change of 0.2."""

    class Dark(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.7 - x

    model = SegModel(Dark(), Task("dark", ("organ",))).eval()
    image = torch.full((1, 1, 8, 8), 0.5)
    start = Boundary(Linf(0.5))._start(model, image, torch.ones_like(image, dtype=torch.bool), [0], torch.tensor([0.5]))
    assert start.size.item() == pytest.approx(0.2, abs=0.5 / 2**HALVINGS + 1e-6)
    assert start.harm.item() >= 0.5


@pytest.mark.parametrize(("goal", "harms"), [(0.5, [0.5, 0.6]), (0.25, [0.75, 0.8])])
def test_a_goal_is_a_share_of_the_score_that_is_left(
    goal: float, harms: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case of harm 0 is adversarial from 1 - goal on, one of harm 0.2 from 1 - 0.8 goal on."""

    class BegunError(Exception):
        pass

    def start(*words: Any) -> Any:
        torch.testing.assert_close(words[-1], torch.tensor(harms))
        raise BegunError

    harm_of = torch.tensor([0.0, 0.2])
    monkeypatch.setattr(Boundary, "_start", start)
    monkeypatch.setattr(boundary, "judge", lambda *_: Adversarial(IMAGE[:2], harm_of, harm_of))
    with pytest.raises(BegunError):
        Boundary(Linf(0.5), goal=goal)(oracle(), IMAGE[:2], IMAGE[:2] >= 0.5, SEEDS[:2])


def test_adam_climbs_the_coefficients_that_were_drawn() -> None:
    """Four steps of Adam by hand, each coefficient with its own number of steps; where none was drawn, it stays."""
    drawn = [[1.0, 0.0, 2.0], [3.0, 0.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 1.0, 1.0]]  # from a corner of the ball inwards
    image = torch.full((1, 1, 1, 3), 0.5, dtype=torch.float64)
    seen: list[Tensor] = []

    def estimate(score: Any, x: Tensor, width: float, seeds: Any, n: int) -> Tensor:
        seen.append(x.flatten().clone())
        return slopes(len(seen) - 1).view_as(x)

    def slopes(step: int) -> Tensor:
        return -seen[0].sign() * torch.tensor(drawn[step], dtype=torch.float64)

    attack = SPSA(Linf(0.4), margin, queries=1 + 1 + 3 * 4, directions=1, grid=0, step_size=0.1, starts=1)
    _ascend(attack, estimate, 1, oracle(), image, image >= 0.5, SEEDS[:1])
    change, mean, square, times = seen[0].clone(), [0.0] * 3, [0.0] * 3, [0] * 3
    for step in range(4):
        torch.testing.assert_close(seen[step], change)
        for k, slope in enumerate(slopes(step).tolist()):
            if slope == 0:
                continue
            times[k] += 1
            mean[k] = 0.9 * mean[k] + 0.1 * slope
            square[k] = 0.999 * square[k] + 0.001 * slope**2
            ascent = mean[k] / (1 - 0.9 ** times[k]) / (square[k] / (1 - 0.999 ** times[k])) ** 0.5
            change[k] = (change[k] + 0.1 * ascent).clamp(-1, 1)  # in multiples of eps
