"""NI-, DI2- and TI-FGSM, SegPGD, CosPGD, DAA and PAdam against their formulas and optima."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import blobs
from helpers.oracle_scene import EPS, EXCLUSIVE, GREY, ORGAN, flipped, images, oracle, truth
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from medseg_attack import registry
from medseg_attack.attacks.gradient.daa import DAA, coupled
from medseg_attack.attacks.gradient.input_diversity import Shrunk
from medseg_attack.attacks.gradient.padam import PAdam
from medseg_attack.attacks.gradient.pgd import PGD, di2_fgsm, fgsm, mi_fgsm, ni_fgsm, segpgd, ti_fgsm
from medseg_attack.errors import InputError
from medseg_attack.numerics.fields import blurred
from medseg_attack.threat.balls.base import even_change
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.threat.objectives.weighted import masked_bce, progressive_bce
from medseg_attack.types import Adversarial, AroundModel, Attack, Image, LogOdds, Model, Task

SEEDS = [1, 2, 3]
DENSE = ("masked_bce", "balanced_bce", "masked_margin", "progressive_bce", "cosine_bce", "js")


@pytest.mark.parametrize(
    ("task", "objective"),
    [(task, name) for task in (ORGAN, EXCLUSIVE) for name in DENSE]
    + [(EXCLUSIVE, name) for name in ("dlr", "margin_softmax", "spherical", "masked_ce")],
    ids=lambda value: value if isinstance(value, str) else ("softmax" if value.exclusive else "sigmoid"),
)
@pytest.mark.parametrize("random_start", [True, False])
def test_dense_objectives_flip_exactly_the_pixels_within_eps(task: Task, objective: str, random_start: bool) -> None:
    attack = PGD(Linf(EPS), registry.build(objective, "objective"), 20, 1 / 3, random_start=random_start)
    image = images()
    wrong = flipped(oracle(task), replace(attack, keep_worst=False), image)
    assert torch.equal(wrong[:, 1 if task.exclusive else 0], (image[:, 0] - 0.5).abs() < EPS)


@pytest.mark.parametrize("task", [ORGAN, EXCLUSIVE], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize(
    "attack",
    [
        ni_fgsm(Linf(EPS)),
        di2_fgsm(Linf(EPS), diversity=0.0),
        ti_fgsm(Linf(EPS), smooth=1),
        replace(segpgd(Linf(EPS)), keep_worst=True),
        registry.build("cospgd(linf(0.03))", "attack"),
        DAA(Linf(EPS), particles=2, coupling=0.0),
        PAdam(Linf(EPS), steps=40),
    ],
    ids=["ni_fgsm", "di2_fgsm", "ti_fgsm", "segpgd", "cospgd", "daa", "padam"],
)
def test_the_family_flips_exactly_the_pixels_within_eps(attack: Attack, task: Task) -> None:
    image = images()
    wrong = flipped(oracle(task), attack, image)
    assert torch.equal(wrong[:, 1 if task.exclusive else 0], (image[:, 0] - 0.5).abs() < EPS)


def test_a_masked_objective_leaves_a_pixel_alone_once_it_is_lost() -> None:
    """Pixels within reach, uniform up to .02, one step beyond the boundary at most; the unmasked go to the edge."""
    model, image = oracle(ORGAN), images(0.02)
    target = truth(model, image)
    for objective, beyond in ((masked_bce, True), (bce, False)):
        attack = PGD(Linf(EPS), objective, 40, 0.05, random_start=False, keep_worst=False)
        moved = (attack(model, image, target, SEEDS).image - image).abs()
        needed = (image - 0.5).abs()
        assert torch.equal(moved < needed + 0.05 * EPS + 1e-9, torch.full_like(target, beyond) | (needed > 0.0285))


def test_the_family_agrees_at_one_step() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    single = fgsm(Linf(EPS))(model, image, target, SEEDS).image
    for variant in (
        mi_fgsm(Linf(EPS), steps=1),
        ni_fgsm(Linf(EPS), steps=1),
        di2_fgsm(Linf(EPS), steps=1, diversity=0.0),
        ti_fgsm(Linf(EPS), steps=1, smooth=1),
        replace(segpgd(Linf(EPS), steps=1, step_size=1.0), random_start=False, objective=bce),
    ):
        assert torch.equal(variant(model, image, target, SEEDS).image, single)
    plain = mi_fgsm(Linf(EPS))(model, image, target, SEEDS).image
    assert torch.equal(di2_fgsm(Linf(EPS), diversity=0.0)(model, image, target, SEEDS).image, plain)
    torch.testing.assert_close(ti_fgsm(Linf(EPS), smooth=1)(model, image, target, SEEDS).image, plain)


class Watched:
    """The oracle, that writes down what it is shown with gradients."""

    task = ORGAN

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, image: Tensor) -> Tensor:
        if image.requires_grad:
            self.shown.append(image.detach().flatten())
        return 10 * image - 5

    def decide(self, log_odds: Tensor) -> Tensor:
        return log_odds >= 0


def test_three_steps_of_ni_fgsm_worked_by_hand() -> None:
    slopes = torch.tensor([[4.0, -4.0], [-1.0, 3.0], [-3.0, 1.0]], dtype=torch.float64)

    def sloping(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return (log_odds.flatten(1) * slopes[round(3 * progress)] / 10).sum(1)

    image = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    watched = Watched()
    ni_fgsm(Linf(0.3), sloping, steps=3, momentum=1.0)(watched, image, image > 0, [1])
    # iterates (.5, .5), (.6, .4), (.7, .5); momenta (0, 0), (1, -1), (1/2, 1/2), each ahead by 0.1 of it
    expected = torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.75, 0.55]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(watched.shown), expected)


def test_what_every_pixel_may_move_by() -> None:
    like = torch.zeros(2, 1, 3, 3)
    torch.testing.assert_close(even_change(Linf(0.1), like), torch.full_like(like, 0.1))
    torch.testing.assert_close(even_change(L2(0.6), like), torch.full_like(like, 0.2))


def test_segpgd_weighs_by_progress() -> None:
    """Three steps: 0, 1/6 and 1/3 of the weight on what is lost already."""
    weights: list[float] = []

    def listening(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        wrong = torch.full_like(log_odds, -3.0).requires_grad_()
        (grad,) = torch.autograd.grad(progressive_bce(wrong, torch.ones_like(target), progress).sum(), wrong)
        weights.append((grad.sum() / -torch.sigmoid(torch.tensor(3.0))).item())
        return bce(log_odds, target)

    replace(segpgd(Linf(0.1), steps=3), objective=listening)(oracle(ORGAN), GREY, GREY > 0, [1])
    assert weights == pytest.approx([0, 1 / 6, 1 / 3], abs=1e-6)


def test_a_blur_keeps_a_constant_and_sums_to_one() -> None:
    grad = torch.zeros(1, 2, 21, 19, dtype=torch.float64)
    grad[0, 0, 10, 9] = 1
    grad[0, 1] = 3
    blur = blurred(grad, 7)
    assert blur[0, 0].sum().item() == pytest.approx(1)
    torch.testing.assert_close(blur[0, 1, 4:-4, 4:-4], torch.full((13, 11), 3.0, dtype=torch.float64))
    assert blur[0, 1, 0, 0] < 3  # zeros outside
    assert (blur[0, 0, 10, 8] / blur[0, 0, 10, 9]).item() == pytest.approx(math.exp(-0.5))
    volume = torch.zeros(1, 1, 9, 9, 9)
    volume[0, 0, 4, 4, 4] = 1
    assert blurred(volume, 5).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(24, 30), (10, 12, 14)], ids=["2-D", "3-D"])
def test_log_odds_of_a_shrunk_image_come_back_to_their_pixels(shape: tuple[int, ...]) -> None:
    ramps = torch.stack(torch.meshgrid(*(torch.linspace(0.2, 0.8, n) for n in shape), indexing="ij"))
    image = ramps[None].repeat(3, 1, *(1 for _ in shape)).double()
    shrunk = Shrunk(
        torch.tensor([True, True, False]),
        torch.tensor([0.9, 0.95, 0.9], dtype=torch.float64),
        torch.tensor([[0.1, -0.1, 0.05][: len(shape)]] * 3, dtype=torch.float64),
    )
    copies = shrunk.to(image)
    assert not torch.allclose(copies[0], image[0], atol=0.01)
    assert torch.equal(copies[2], image[2])
    inner = (slice(None), slice(None), *(slice(2, -2) for _ in shape))
    torch.testing.assert_close(shrunk.back(copies)[inner], image[inner], atol=5e-3, rtol=0)


def test_a_copy_lies_on_the_grid_with_zeros_around() -> None:
    ones = torch.ones(8, 1, 40, 40)
    shrunk = Shrunk.draw(ones, 1.0, list(range(8)))
    copies = shrunk.to(ones)
    assert (shrunk.size >= 0.9).all()
    area = copies.flatten(1).mean(1)
    torch.testing.assert_close(area, shrunk.size**2, atol=0.01, rtol=0)
    assert len({round(value, 3) for value in shrunk.size.tolist()}) == 8


def test_shrinking_needs_axes() -> None:
    with pytest.raises(InputError, match="2 or 3 axes"):
        di2_fgsm()(oracle(ORGAN), torch.rand(1, 1, 9), torch.ones(1, 1, 9, dtype=torch.bool), [1])
    with pytest.raises(InputError, match="odd number"):
        ti_fgsm(smooth=4)


def test_diverse_inputs_still_attack_the_right_pixels() -> None:
    """Were the log-odds not carried back, border pixels would be pushed by their neighbours' truth."""
    model = oracle(ORGAN)
    image = torch.full((2, 1, 32, 32), 0.45, dtype=torch.float64)
    image[..., 8:24] = 0.55
    target = truth(model, image)
    result = di2_fgsm(Linf(0.1), margin, steps=4, diversity=1.0)(model, image, target, [5, 6])
    inside = (result.image - image).sign() == torch.where(target, -1.0, 1.0)
    assert inside.double().mean() > 0.99


def test_daa_without_coupling_is_pgd_with_restarts() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    alone = PGD(Linf(EPS), bce, 5, restarts=3)(model, image, target, SEEDS)
    apart = DAA(Linf(EPS), bce, 5, particles=3, coupling=0.0)(model, image, target, SEEDS)
    torch.testing.assert_close(apart.image, alone.image)
    together = DAA(Linf(EPS), bce, 5, particles=3, coupling=30.0)(model, image, target, SEEDS)
    assert not torch.allclose(together.image, alone.image)


def test_the_kernel_of_two_particles_worked_by_hand() -> None:
    """|x_1 - x_2|^2 = 4: h^2 = median(0, 0, 4, 4) / (2 log 2), the lower of the middle two, hence TINY; of three: 4."""
    theta = torch.tensor([0.0, 2.0, 0.0]).double().view(3, 1, 1, 1, 1)  # distances 0 x 5, 4 x 4
    grads = torch.tensor([1.0, -1.0, 0.5]).double().view(3, 1, 1, 1, 1)
    directions = coupled(theta, grads, 3.0).flatten()
    # the median of 5 zeros and 4 fours is 0: the kernel is 1 between equals and 0 else; nothing pulls
    torch.testing.assert_close(directions, torch.tensor([1 + 1.5, -1 - 1.0, 0.5 + 1.5]).double())
    theta = torch.tensor([0.0, 2.0, -2.0]).double().view(3, 1, 1, 1, 1)  # squares 0 x 3, 4 x 4, 16 x 2
    width = 4 / (2 * math.log(3))
    near, far = math.exp(-4 / (2 * width)), math.exp(-16 / (2 * width))
    others = torch.tensor([1 - near + 0.5 * near, -1 + near + 0.5 * far, 0.5 + near - far]).double()
    away = torch.tensor([0.0, 1.0, -1.0]).double()  # of unit magnitude
    expected = grads.flatten() + 1.0 * (others - away)
    torch.testing.assert_close(coupled(theta, grads, 3.0).flatten(), expected)


def test_padam_saturates_the_ball_in_a_few_steps_and_steps_per_pixel() -> None:
    """A constant gradient moves every pixel by the learning rate, however small it is there."""
    watched = Watched()
    steep = torch.tensor([1e-3, -7.0, 2.0, -1e-2]).double()

    def sloping(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return (log_odds.flatten(1) * steep).sum(1)

    image = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    attack = PAdam(Linf(8 / 255), sloping, steps=9)
    attack(watched, image, image > 0, [3])
    start = attack.ball.sample(image, [3]).flatten()
    torch.testing.assert_close(watched.shown[0], start)
    # AMSGrad's spread only grows, so later steps are the learning rate, too
    expected = (start + 2 / 255 * steep.sign()).clamp(0.5 - 8 / 255, 0.5 + 8 / 255)
    torch.testing.assert_close(watched.shown[1], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(watched.shown[8], 0.5 + 8 / 255 * steep.sign(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("daa(particles=1)", "particles >= 2"),
        ("padam(steps=0)", "steps >= 1"),
        ("pgd(diversity=-1)", "diversity in [0, 1]"),
        ("daa(steps=0)", "steps >= 1"),
    ],
)
def test_wrong_options_are_told(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        registry.build(text, "attack")
    assert message in str(error.value)


class ImagesInMemory(AroundModel):
    """A model that counts, in every backward pass, the images that it has got and that are still in memory."""

    def __init__(self, model: Model) -> None:
        self.model, self.images, self.living = model, set[StorageWeakRef](), list[int]()

    def __call__(self, image: Image) -> LogOdds:
        self.images.add(StorageWeakRef(image.untyped_storage()))
        log_odds = self.model(image)
        if log_odds.requires_grad:
            log_odds.register_hook(lambda grad: self._count())
        return log_odds

    def _count(self) -> None:
        self.living.append(sum(not image.expired() for image in self.images))


def test_the_iterate_before_a_worse_one_is_gone_while_the_gradient_is_computed() -> None:
    model, image = ImagesInMemory(oracle(ORGAN)), images()[:1]
    PGD(Linf(EPS), steps=3)(model, image, truth(oracle(ORGAN), image), SEEDS[:1])
    assert model.living == [2, 2, 2]  # the untouched image and the iterate, which is the worst so far


RELATIVE = ("gain(0.3)", "stops(0.5)", "ghost(0.1)", "echo(0.1)", "decibels(3)", "kernel_gain(0.3)", "blur_width(1)")


@pytest.mark.parametrize("ball", ["linf(0.05)", "quantised(20)", *RELATIVE])
def test_a_length_that_is_a_share_of_the_ball_moves_images_in_balls_of_any_kind(ball: str) -> None:
    """Of a black image nothing is large enough for a ball of relative changes: no length may be taken from there."""
    batch, model = blobs.batch(3), blobs.healthy()

    def result(name: str, options: str = "") -> Adversarial:
        return registry.build(f"{name}({ball}{options})", "attack")(model, batch.image, batch.target, SEEDS)

    assert result("padam", ", steps=10").harm.mean() > result("noise").harm.mean() + 0.05
    assert not torch.equal(result("ni_fgsm").image, result("mi_fgsm").image)  # it looks ahead
