"""DeepFool on models that are linear, where its steps are known."""

from dataclasses import replace

import pytest
import torch
from helpers.linear import Linear
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.minimal.deepfool import NUDGE, DeepFool
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.goals.criteria import ByPixels
from medseg_attack.threat.goals.masks import Erase
from medseg_attack.types import Adversarial, Image, Model, Task

BALLS = [Linf(0.9), L2(5.0)]
BEYOND = 1.02


def grey(*shape: int) -> Tensor:
    return torch.full(shape, 0.5, dtype=torch.float64)


def attacked(model: Model, image: Image, ball: Linf | L2, **options: int) -> tuple[Adversarial, list[int]]:
    """What it finds for the first image, and the class of each of its pixels thereafter."""
    result = DeepFool(ball, **options)(model, image, model.decide(model(image)), range(len(image)))
    return result, model.decide(model(result.image))[0].byte().argmax(0).flatten().tolist()


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_one_linear_pixel_is_flipped_in_one_step(ball: Linf | L2) -> None:
    oracle: Model = registry.build("oracle", "model")(Task("oracle", ("organ",))).double().eval()
    model = CountedModel(oracle)
    result = DeepFool(ball)(model, grey(1, 1, 1, 1) + 0.2, torch.ones(1, 1, 1, 1, dtype=torch.bool), [1])
    assert result.size.item() == pytest.approx((0.2 + NUDGE) * BEYOND)
    assert torch.as_tensor(result.passes).tolist() == [[3, 1]]


@pytest.mark.parametrize(("ball", "distance"), [(Linf(0.9), 0.3 / 3.5), (L2(5.0), 0.3 / 2.5)], ids=["linf", "l2"])
def test_the_runner_up_is_left_where_another_class_is_nearer(ball: Linf | L2, distance: float) -> None:
    """The runner-up lacks 0.1, which takes a change of 0.4; the third class lacks 0.3, which takes less."""
    model = CountedModel(Linear(((0.0, 0.0), (0.25, 0.0), (1.5, 2.0)), (0.0, 0.1, 0.3)))
    result, classes = attacked(model, grey(1, 2, 1, 1), ball)
    assert classes == [2]
    assert result.size.item() == pytest.approx((distance + NUDGE) * BEYOND, rel=1e-9)
    assert torch.as_tensor(result.passes).tolist() == [[3, 2]]  # one backward pass for each other class
    assert model.backwards == 2


@pytest.mark.parametrize(("ball", "expected"), [(Linf(0.9), 2), (L2(5.0), 1)], ids=["linf", "l2"])
def test_the_norm_says_which_class_is_nearest(ball: Linf | L2, expected: int) -> None:
    """0.2 and 0.25 / sqrt(1.28) = 0.22 away in L2, 0.2 and 0.25 / 1.6 = 0.16 in Linf."""
    _, classes = attacked(Linear(((0.0, 0.0), (1.0, 0.0), (0.8, 0.8)), (0.0, 0.2, 0.25)), grey(1, 2, 1, 1), ball)
    assert classes == [expected]


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_every_sample_has_a_nearest_class_and_a_cost_of_its_own(ball: Linf | L2) -> None:
    model = Linear(((0.0, 0.0), (0.25, 0.0), (1.5, 2.0)), (0.0, 0.1, 0.3))
    image = grey(3, 2, 1, 2)
    image[0, 0, 0, 0], image[1, 1], image[2, 0, 0, 1] = 0.45, 0.9, 0.95
    target = model.decide(model(image))
    assert len({tuple(sample.flatten().tolist()) for sample in target}) > 1
    together = DeepFool(ball)(model, image, target, range(3))
    assert torch.as_tensor(together.success).all()
    for i in range(3):
        metered = CountedModel(model)
        alone = DeepFool(ball)(metered, image[i : i + 1], target[i : i + 1], [i])
        assert torch.equal(alone.image[0], together.image[i])
        assert torch.equal(torch.as_tensor(alone.passes)[0], torch.as_tensor(together.passes)[i])
        assert torch.as_tensor(alone.passes)[0, 1] == metered.backwards


@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_pixels_that_fell_are_left_alone_and_the_rest_add_up(ball: Linf | L2) -> None:
    """Of four pixels one is wrong already; the others lack 0.1, 0.1 and 0.2 at a slope of 1: 0.4 / 3 in Linf."""
    model = Linear(((0.0,), (1.0,)), (0.0, 0.1))
    image = grey(1, 1, 1, 4)
    image[..., 3] = 0.4
    target = model.decide(model(image))
    image[..., 0] = 0.61
    single_step = DeepFool(ball, steps=1, success=ByPixels(0.75))(model, image, target, [0])
    moved = (single_step.image - image).flatten()
    to_boundary = (0.4 / 3 + NUDGE) if isinstance(ball, Linf) else (0.4 / 3**0.5 + NUDGE) / 3**0.5
    assert moved.tolist() == pytest.approx([0, *[to_boundary * BEYOND] * 3])
    assert torch.as_tensor(single_step.success).all()
    moved = (DeepFool(ball, success=ByPixels(1.0))(model, image, target, [0]).image - image).flatten()
    rest = 0.2 - to_boundary * BEYOND + NUDGE
    assert moved.tolist() == pytest.approx(
        [0, to_boundary * BEYOND, to_boundary * BEYOND, (to_boundary + rest) * BEYOND]
    )


@pytest.mark.parametrize("exclusive", [True, False], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])
def test_a_step_that_the_range_cuts_crosses_all_the_same(ball: Linf | L2, *, exclusive: bool) -> None:
    """Half of the pixels are white and would have to be whiter: a step goes half of the way that is left."""
    slopes, lacks = (((0.0,), (1.0,)), (0.0, 0.3)) if exclusive else (((1.0,),), (0.3,))
    model = Linear(slopes, lacks, exclusive=exclusive, averaged=True)
    image = grey(1, 1, 2, 4)
    image[..., :2] = 1.0
    result, _ = attacked(model, image, ball, steps=20)
    assert torch.as_tensor(result.success).all()
    assert (result.image - image).amax() == pytest.approx(0.1, abs=0.002)


def test_towards_a_goal_the_wanted_class_must_win_over_the_best_other() -> None:
    model = CountedModel(Linear(((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)), (0.2, 0.1, 0.0)))
    image = grey(1, 2, 1, 1)
    attack = DeepFool(Linf(0.9), goal=Erase())
    result = attack(model, image, model.decide(model(image)), [0])
    assert torch.as_tensor(result.success).all()
    assert model.decide(model(result.image))[0, 0].all()
    assert torch.as_tensor(result.passes)[0, 1] == model.backwards == torch.as_tensor(result.passes)[0, 0] - 2
    short = replace(attack, steps=1)(model, image, model.decide(model(image)), [0])
    assert (short.size <= result.size).all()
