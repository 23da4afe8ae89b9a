"""Every registered attack against the worst case of models for which it can be written down.

On an oracle a pixel flips if it comes to the other side of 1/2, whatever its neighbours do. What an attack may reach
there is known of every ball; which attacks must reach it they say themselves, by `reaches=...` where they are
registered.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.near_decision import nearest
from helpers.oracle_scene import EPS, EXCLUSIVE, ORGAN, SHAPE, flipped, images, oracle, truth
from torch import Tensor

from medseg_attack import registry
from medseg_attack.types import Adversarial, Attack, Ball, Batch, Case, Fittable, Model, Task, Window

TASKS = pytest.mark.parametrize("task", [ORGAN, EXCLUSIVE], ids=["sigmoid", "softmax"])
SEEDS = [1, 2, 3]
ATTACKS = {name: registry.find(name) for name in registry.names("attack")}


def that_reach(optimum: str) -> dict[str, str]:
    """The spec by which each attack of that `reaches` shows it."""
    return {name: entry.shown_by or name for name, entry in ATTACKS.items() if re.fullmatch(optimum, entry.reaches)}


EXACT = that_reach("all in eps")
LEAST = that_reach(r"within [0-9.]+ of the least")
BOUNDED = that_reach("its ball")
MOVING = that_reach("nothing, as the truth moves along")
ELSEWHERE = that_reach(r"what is known in \S+\.py, as .+")


def test_every_attack_states_the_optimum_that_it_reaches() -> None:
    stated = {**EXACT, **LEAST, **BOUNDED, **MOVING, **ELSEWHERE}
    assert sorted(stated) == registry.names("attack")
    for name, text in stated.items():
        assert name in {part.name for part in registry.named(text).walk()}


def test_no_kind_of_optimum_stands_empty() -> None:
    assert all([EXACT, LEAST, BOUNDED, MOVING, ELSEWHERE])


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_tested_elsewhere_is_named_there(name: str) -> None:
    file = Path(__file__).parents[1] / ATTACKS[name].reaches.split()[4].rstrip(",")
    assert name.partition("_")[0] in file.read_text(encoding="utf-8").lower()  # a variant by its attack and an option


def built(text: str, model: Model, eps: float | None = None, **short: int) -> Attack:
    attack: Attack = registry.build(text, "attack", short)
    attack = attack if eps is None else registry.with_eps(attack, eps)
    if isinstance(attack, Fittable):
        image = images().flip(0)
        target = truth(model, image)
        cases = [Case(str(n), "", "", image[n], target[n], (1.0, 1.0), Window(0, 1)) for n in range(3)]
        attack = attack.with_learned(attack.fit(model, [Batch.of(cases)], 0))
    return attack


@TASKS
@pytest.mark.parametrize("name", EXACT)
def test_what_is_within_reach_is_flipped_and_nothing_else(name: str, task: Task) -> None:
    model, image = oracle(task), images()
    wrong = flipped(model, built(EXACT[name], model, EPS), image)
    assert torch.equal(wrong[:, 1 if task.exclusive else 0], (image[:, 0] - 0.5).abs() < EPS)


@pytest.mark.parametrize("name", EXACT)
def test_with_half_of_the_budget_it_is_not(name: str) -> None:
    """The test above can fail."""
    model, image = oracle(ORGAN), images()
    wrong = flipped(model, built(EXACT[name], model, EPS / 2), image)
    assert not torch.equal(wrong, (image - 0.5).abs() < EPS)


# objectives whose sign is not against every wrong entry where classes may overlap, and what they reach instead
ORGANS_ALONE = ("bce_swapped", "ce", "focal_swapped")
LESS = ("dice_focal_swapped", "dice_swapped", "exp_log_shukla2023", "medis_combined_shukla2023")
PULLS_BOTH_WAYS = ("exp_log_shukla2023", "medis_combined_shukla2023")  # under a softmax, too


@pytest.mark.parametrize("name", [name for name in registry.names("objective") if name != "toward"])
@pytest.mark.parametrize("attack", ["pgd(steps=20, step_size=1/3, keep_worst=False)", "apgd(steps=20)"])
@TASKS
def test_every_objective_is_climbed_to_the_optimum(task: Task, attack: str, name: str) -> None:
    if not task.exclusive and registry.find(name).exclusive:
        return  # refused: test_objectives.py
    model, image = oracle(task), images()
    objective = registry.build(name, "objective")
    wrong = flipped(model, built_with(attack, objective), image)[:, 1 if task.exclusive else 0]
    within = (image[:, 0] - 0.5).abs() < EPS
    if name in (PULLS_BOTH_WAYS if task.exclusive else LESS):
        assert not (wrong & ~within).any()
        assert wrong.sum() < within.sum()
    elif name in ORGANS_ALONE and not task.exclusive:
        assert not (wrong & ~within).any()
        organ = image[:, 0] >= 0.5  # elsewhere there is no gradient, and a random start stays what it is
        assert torch.equal(wrong & organ, within & organ)
        assert (wrong & ~organ).sum() < (within & ~organ).sum()
    else:
        assert torch.equal(wrong, within)


def built_with(text: str, objective: object) -> Attack:
    attack: Attack = registry.with_eps(registry.build(text, "attack", {"objective": objective}), EPS)
    return attack


@TASKS
@pytest.mark.parametrize("name", LEAST)
def test_the_least_change_is_found(name: str, task: Task) -> None:
    bound = float(ATTACKS[name].reaches.split()[1])
    model, image = oracle(task), images(0.2)
    attack = built(LEAST[name], model)
    target = truth(model, image)
    result = attack(model, image, target, SEEDS)
    wanted = target if name != "asma" else torch.zeros_like(target)
    share = agreeing(model.decide(model(result.image)), wanted, task)
    assert torch.as_tensor(result.success).all()
    assert ((1 - share if name != "asma" else share) >= 0.99 - 1e-12).all()
    assert (result.size <= bound * least(name, attack, image)).all()
    assert (result.size >= least(name, attack, image) * (1 - 1e-9)).all()


def agreeing(pred: Tensor, wanted: Tensor, task: Task) -> Tensor:
    organ = 1 if task.exclusive else 0
    return (pred == wanted)[:, organ].flatten(1).double().mean(1)


def least(name: str, attack: Attack, image: Tensor) -> Tensor:
    """In the attack's norm."""
    norm = registry.spec_of(attack.ball).name
    needed = nearest(image)
    if name == "asma":  # to erase: one in a hundred may stay, the brightest
        above = (image - 0.5).clamp(min=0).flatten(1).sort(1).values
        needed = above[:, : needed.shape[1]]
    if norm == "l0":
        return torch.full((len(image),), needed.shape[1] / image[0].numel(), dtype=torch.float64)
    return needed[:, -1] if norm == "linf" else needed.square().sum(1).sqrt()


STILL = EXACT | {name: name for name in LEAST} | BOUNDED


@TASKS
@pytest.mark.parametrize("name", STILL)
def test_nothing_beyond_the_ball_is_flipped(name: str, task: Task) -> None:
    """The least change that flips what was flipped, each such pixel to 1/2 and no other, is in the ball."""
    model, image = oracle(task), images(0.3)
    attack = built(STILL[name], model, steps=3, searches=2)
    result = attack(model, image, truth(model, image), SEEDS)
    assert (needed(result, model, image, attack.ball) <= attack.ball.limit + 1e-9).all()


@pytest.mark.parametrize("name", ["pgd", "bias_field", "bef", "rician", "speckle"])
def test_more_than_the_ball_is_noticed(name: str) -> None:
    """The test above can fail: what a whole budget flips is beyond a fifth of it."""
    model, image = oracle(ORGAN), images(0.3)
    attack = registry.build(name, "attack")
    result = attack(model, image, truth(model, image), SEEDS)
    smaller = registry.with_eps(attack.ball, attack.ball.eps / 5)
    assert (needed(result, model, image, smaller) > smaller.limit).any()


def needed(result: Adversarial, model: Model, image: Tensor, ball: Ball) -> Tensor:
    """The size of the least change that flips what was flipped."""
    organ = 1 if model.task.exclusive else 0
    wrong = (model.decide(model(result.image)) != truth(model, image))[:, organ : organ + 1]
    return ball.size(torch.where(wrong, torch.full_like(image, 0.5), image), image)


@TASKS
@pytest.mark.parametrize("name", MOVING)
def test_where_the_truth_moves_along_an_image_of_two_levels_loses_nothing(name: str, task: Task) -> None:
    """Interpolated between 0.3 and 0.7, a pixel is above 1/2 where most of it came from the organ."""
    model = oracle(task)
    image = torch.where(images(0.5) >= 0.5, 0.7, 0.3).double()
    attack = built(MOVING[name], model)
    result = attack(model, image, truth(model, image), SEEDS)
    assert result.flow is not None
    assert result.harm.max() == 0
    drawn = registry.build(f"{name}(steps=0)", "attack")(model, image, truth(model, image), SEEDS)
    assert drawn.harm.max() == 0
    assert (attack.ball.total_size(drawn.image, drawn.image, drawn.flow) > 0.1).all()
    assert not torch.equal(model.decide(model(drawn.image)), truth(model, image))


def test_blends_flip_what_a_blend_reaches() -> None:
    """(1 - eps) x + eps s crosses 1/2 from above where x <= (1/2 + eps) / (1 - eps), from below where x >= ..."""
    model, image = oracle(ORGAN), images()
    attack = registry.build("fgsm_wang2024(blend(0.03), swapped=False, channels=1)", "attack")
    down = (image >= 0.5) & ((1 - 0.03) * image - 0.03 < 0.5)
    up = (image < 0.5) & ((1 - 0.03) * image + 0.03 >= 0.5)
    assert torch.equal(flipped(model, attack, image), down | up)


SIGNED: dict[str, Callable[[str], str]] = {
    "fgsm": lambda objective: f"fgsm(objective={objective})",
    "bim": lambda objective: f"bim(objective={objective}, steps=1, step_size=1.0)",
    "apgd": lambda objective: f"apgd(objective={objective}, steps=1)",
}


@pytest.mark.parametrize("objective", ["bce", "masked_bce", "js", "cosine_bce", "margin", "soft_dice"])
@pytest.mark.parametrize("name", SIGNED)
def test_through_a_blur_pixels_go_where_its_adjoint_says(name: str, objective: str) -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images(0.4)
    shown: list[Tensor] = []

    class Shown:
        task = ORGAN

        def __call__(self, x: Tensor) -> Tensor:
            shown.append(x.detach())
            return model(x)

        def decide(self, log_odds: Tensor) -> Tensor:
            return model.decide(log_odds)

    target = truth(model, image)
    registry.with_eps(registry.build(SIGNED[name](objective), "attack"), 0.01)(Shown(), image, target, SEEDS)
    before, after = shown[-2:] if name == "apgd" else (image, shown[-1])
    log_odds = model(before).requires_grad_()
    climbed = registry.build(objective, "objective")(log_odds, target, 0.0)
    (pull,) = torch.autograd.grad(climbed.sum(), log_odds)
    filtered = torch.nn.functional.conv2d(pull, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1)
    sure = filtered.abs() > 1e-12
    assert sure.double().mean() > 0.5
    edge = torch.where(filtered > 0, image + 0.01, image - 0.01)
    torch.testing.assert_close(after[sure], edge[sure], atol=1e-12, rtol=0)
    assert after.shape[2:] == SHAPE
