"""Attacks against optima that can be written down."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.gradient import PGD, bim, fgsm, mi_fgsm
from medseg_attack.attacks.wang2024 import Blend, FgsmWang2024
from medseg_attack.balls import L2, Linf
from medseg_attack.objectives import bce, ce, margin, soft_dice
from medseg_attack.types import Attack, Batch, Model, Task

ORGAN = Task("oracle", ("organ",))
EXCLUSIVE = Task("oracle", ("background", "organ", "never"), exclusive=True)
SHAPE = (24, 20)
EPS = 0.03


def oracle(task: Task, name: str = "oracle") -> Model:
    model: Model = registry.build(name, "model")(task).double().eval()
    return model


def images(spread: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 + spread * (2 * torch.rand(3, 1, *SHAPE, generator=generator, dtype=torch.float64) - 1)


def truth(model: Model, image: Tensor) -> Tensor:
    return model.decide(model(image))


def flipped(model: Model, attack: Attack, image: Tensor) -> Tensor:
    target = truth(model, image)
    found = attack(model, image, target, [1, 2, 3])
    return model.decide(model(found.image)) != target


@pytest.mark.parametrize(
    ("task", "objective"),
    [(task, name) for task in (ORGAN, EXCLUSIVE) for name in ("bce", "focal", "margin", "bce_dice", "dice_focal")]
    + [(EXCLUSIVE, "ce")],
    ids=lambda value: value if isinstance(value, str) else ("softmax" if value.exclusive else "sigmoid"),
)
@pytest.mark.parametrize(
    "attack",
    [
        fgsm(Linf(EPS)),
        bim(Linf(EPS), steps=10),
        mi_fgsm(Linf(EPS), steps=10),
        PGD(Linf(EPS), steps=20, step_size=1 / 3),
        PGD(Linf(EPS), steps=20, step_size=1 / 3, random_start=False, keep_worst=False),
        PGD(Linf(EPS), steps=20, step_size=1 / 3, restarts=2),
    ],
    ids=["fgsm", "bim", "mi_fgsm", "pgd", "pgd-last", "pgd-restarts"],
)
def test_linf_attacks_flip_exactly_the_pixels_within_reach(attack: PGD, objective: str, task: Task) -> None:
    model, image = oracle(task), images()
    wrong = flipped(model, replace(attack, objective=registry.build(objective, "objective")), image)
    within_reach = (image - 0.5).abs() < EPS
    organ = 1 if task.exclusive else 0
    assert torch.equal(wrong[:, organ], within_reach[:, 0])


def test_a_negated_gradient_flips_nothing() -> None:
    """The test above can fail: an attacker that climbs the wrong way leaves every pixel where it was."""
    model, image = oracle(ORGAN), images()

    def negated(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return -bce(log_odds, target)

    assert not flipped(model, fgsm(Linf(EPS), negated), image).any()


def test_ce_moves_organ_pixels_alone_where_there_is_no_background_class() -> None:
    model, image = oracle(ORGAN), images()
    wrong = flipped(model, fgsm(Linf(EPS), ce), image)
    assert torch.equal(wrong, (image >= 0.5) & (image - 0.5 < EPS))


def test_l2_fgsm_is_the_gradient_itself() -> None:
    model, image = oracle(ORGAN), images(0.2)
    target = truth(model, image)
    found = fgsm(L2(0.5), margin)(model, image, target, [1, 2, 3])
    # the margin's gradient is the same for every pixel: the step is eps / sqrt(n) against each polarity
    expected = image + 0.5 / image[0].numel() ** 0.5 * torch.where(target, -1.0, 1.0)
    torch.testing.assert_close(found.image, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.size, torch.full((3,), 0.5, dtype=torch.float64))


def test_l2_pgd_reaches_the_optimum_of_a_linear_objective() -> None:
    model, image = oracle(ORGAN), images(0.2)
    target = truth(model, image)
    attack = PGD(L2(0.5), margin, steps=40, step_size=0.25, keep_worst=False)
    found = attack(model, image, target, [1, 2, 3])
    optimum = margin(model(image), target) + 10 * 0.5 / image[0].numel() ** 0.5
    torch.testing.assert_close(margin(model(found.image), target), optimum, rtol=1e-6, atol=0)


def test_gradients_pass_through_a_blur_as_its_adjoint() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    found = fgsm(Linf(0.01), bce)(model, image, target, [1, 2, 3])
    upstream = torch.sigmoid(model(image)) - target.double()
    padded = torch.nn.functional.pad(upstream, (1, 1, 1, 1))
    filtered = sum(padded[:, :, i : i + SHAPE[0], j : j + SHAPE[1]] for i in range(3) for j in range(3))
    moved = found.image - image
    inside = (image > 0.01) & (image < 0.99) & (torch.as_tensor(filtered).abs() > 1e-9)
    assert torch.equal(moved.sign()[inside], torch.as_tensor(filtered).sign()[inside])


@pytest.mark.parametrize("shape", [(9,), (6, 5), (4, 3, 5)], ids=["1-D", "2-D", "3-D"])
def test_the_same_code_attacks_any_number_of_axes(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = oracle(ORGAN)
    target = truth(model, image)
    for name in ("fgsm", "bim", "pgd", "mi_fgsm"):
        attack = registry.with_eps(registry.build(name, "attack"), EPS)
        wrong = model.decide(model(attack(model, image, target, [1, 2]).image)) != target
        assert torch.equal(wrong, (image - 0.5).abs() < EPS), name


def test_the_family_agrees_at_one_step() -> None:
    model, image = oracle(ORGAN), images()
    target = truth(model, image)
    one: list[Callable[[], PGD]] = [
        lambda: fgsm(Linf(EPS)),
        lambda: bim(Linf(EPS), steps=1, step_size=1.0),
        lambda: mi_fgsm(Linf(EPS), steps=1),
        lambda: PGD(Linf(EPS), steps=1, step_size=1.0, random_start=False, keep_worst=False),
    ]
    found = [make()(model, image, target, [1, 2, 3]).image for make in one]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_momentum_does_not_feel_the_scale_of_the_objective() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)

    def louder(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return 1000 * bce(log_odds, target)

    quiet, loud = (mi_fgsm(Linf(EPS), objective)(model, image, target, [1, 2, 3]) for objective in (bce, louder))
    torch.testing.assert_close(quiet.image, loud.image, atol=1e-9, rtol=0)


def test_best_iterate_never_gets_worse_with_more_steps() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    harms = [PGD(Linf(EPS), soft_dice, steps=n)(model, image, target, [1, 2, 3]).harm for n in (1, 3, 9, 27)]
    assert all((later >= earlier).all() for earlier, later in pairwise(harms))


def test_wang2024_blends() -> None:
    model, image = oracle(ORGAN), images()
    target = truth(model, image)
    found = FgsmWang2024(Blend(0.009), bce, swapped=False, channels=1)(model, image, target, [1, 2, 3]).image
    x = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(bce(model(x), target).sum(), x)
    torch.testing.assert_close(found, ((1 - 0.009) * image + 0.009 * grad.sign()).clamp(0, 1), atol=1e-15, rtol=0)
    assert 0.009 < (found - image).abs().max() <= 2 * 0.009


def test_wang2024_only_darkens_a_slice_without_organs() -> None:
    model = oracle(ORGAN)
    image = images() * 0.5
    empty = torch.zeros_like(truth(model, image))
    found = FgsmWang2024(Blend(0.009), channels=1)(model, image, empty, [1, 2, 3]).image
    torch.testing.assert_close(found, (1 - 0.009) * image, atol=1e-15, rtol=0)


def test_wang2024_perturbs_three_copies_of_the_channel() -> None:
    task = Task("three", ("organ",))

    class Weighted(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:  # the copies pull in different directions
            return 10 * (image * torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1)).sum(1, keepdim=True) - 5

    from medseg_attack.models.segmodel import SegModel

    model = SegModel(Weighted(), task, in_channels=3)
    image = images().float()
    target = truth(model, image)
    found = FgsmWang2024(Blend(0.02), bce, swapped=False)(model, image, target, [1, 2, 3]).image
    assert found.shape == (3, 3, *SHAPE)
    down = found < image
    assert torch.equal(down[:, 0], ~down[:, 1])
    assert torch.equal(down[:, 0], down[:, 2])


def test_a_batch_is_a_plain_stack() -> None:
    assert Batch(images(), images() > 0.5, ()).image.shape == (3, 1, *SHAPE)
