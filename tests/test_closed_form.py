"""Attacks against optima that can be written down."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import pytest
import torch
from helpers.oracle_scene import EPS, EXCLUSIVE, GREY, ORGAN, SHAPE, flipped, images, oracle, truth
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD, bim, fgsm, mi_fgsm
from medseg_attack.attacks.gradient.wang2024 import Blend, FgsmWang2024
from medseg_attack.errors import InputError
from medseg_attack.metrics.harm import harm
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import bce, ce, margin, soft_dice
from medseg_attack.types import Adversarial, Batch, LogOdds, Mask, Task


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
def test_linf_attacks_flip_exactly_the_pixels_within_eps(attack: PGD, objective: str, task: Task) -> None:
    model, image = oracle(task), images()
    wrong = flipped(model, replace(attack, objective=registry.build(objective, "objective")), image)
    within_eps = (image - 0.5).abs() < EPS
    organ = 1 if task.exclusive else 0
    assert torch.equal(wrong[:, organ], within_eps[:, 0])


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
    result = fgsm(L2(0.5), margin)(model, image, target, [1, 2, 3])
    # the margin's gradient is the same for every pixel: the step is eps / sqrt(n) against each polarity
    expected = image + 0.5 / image[0].numel() ** 0.5 * torch.where(target, -1.0, 1.0)
    torch.testing.assert_close(result.image, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.size, torch.full((3,), 0.5, dtype=torch.float64))


def test_l2_pgd_reaches_the_optimum_of_a_linear_objective() -> None:
    model, image = oracle(ORGAN), images(0.2)
    target = truth(model, image)
    attack = PGD(L2(0.5), margin, steps=40, step_size=0.25, keep_worst=False)
    result = attack(model, image, target, [1, 2, 3])
    optimum = margin(model(image), target) + 10 * 0.5 / image[0].numel() ** 0.5
    torch.testing.assert_close(margin(model(result.image), target), optimum, rtol=1e-6, atol=0)


def test_gradients_pass_through_a_blur_as_its_adjoint() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    result = fgsm(Linf(0.01), bce)(model, image, target, [1, 2, 3])
    upstream = torch.sigmoid(model(image)) - target.double()
    padded = torch.nn.functional.pad(upstream, (1, 1, 1, 1))
    filtered = sum(padded[:, :, i : i + SHAPE[0], j : j + SHAPE[1]] for i in range(3) for j in range(3))
    moved = result.image - image
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
    attacks: list[Callable[[], PGD]] = [
        lambda: fgsm(Linf(EPS)),
        lambda: bim(Linf(EPS), steps=1, step_size=1.0),
        lambda: mi_fgsm(Linf(EPS), steps=1),
        lambda: PGD(Linf(EPS), steps=1, step_size=1.0, random_start=False, keep_worst=False),
    ]
    perturbed = [make()(model, image, target, [1, 2, 3]).image for make in attacks]
    assert all(torch.equal(perturbed[0], other) for other in perturbed[1:])


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
    perturbed = FgsmWang2024(Blend(0.009), bce, swapped=False, channels=1)(model, image, target, [1, 2, 3]).image
    x = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(bce(model(x), target).sum(), x)
    torch.testing.assert_close(perturbed, ((1 - 0.009) * image + 0.009 * grad.sign()).clamp(0, 1), atol=1e-15, rtol=0)
    assert 0.009 < (perturbed - image).abs().max() <= 2 * 0.009


def test_wang2024_only_darkens_a_slice_without_organs() -> None:
    model = oracle(ORGAN)
    image = images() * 0.5
    empty = torch.zeros_like(truth(model, image))
    perturbed = FgsmWang2024(Blend(0.009), channels=1)(model, image, empty, [1, 2, 3]).image
    torch.testing.assert_close(perturbed, (1 - 0.009) * image, atol=1e-15, rtol=0)


def test_wang2024_perturbs_three_copies_of_the_channel() -> None:
    task = Task("three", ("organ",))

    class Weighted(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:  # the copies pull in different directions
            return 10 * (image * torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1)).sum(1, keepdim=True) - 5

    from medseg_attack.models.segmodel import SegModel

    model = SegModel(Weighted(), task, in_channels=3)
    image = images().float()
    target = truth(model, image)
    perturbed = FgsmWang2024(Blend(0.02), bce, swapped=False)(model, image, target, [1, 2, 3]).image
    assert perturbed.shape == (3, 3, *SHAPE)
    down = perturbed < image
    assert torch.equal(down[:, 0], ~down[:, 1])
    assert torch.equal(down[:, 0], down[:, 2])


def test_wang2024_changes_the_channels_of_a_scan_that_has_several() -> None:
    image = torch.cat([images(0.2), 1 - images(0.2)], 1)

    class Difference:
        task = ORGAN

        def __call__(self, image: Tensor) -> LogOdds:
            return 10 * (image[:, :1] - image[:, 1:])

        def decide(self, log_odds: LogOdds) -> Mask:
            return log_odds >= 0

    model = Difference()
    target = model.decide(model(image))
    result = FgsmWang2024(Blend(0.02), bce, swapped=False)(model, image, target, [1, 2, 3]).image
    signs = torch.where(target, -1.0, 1.0) * torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1)
    torch.testing.assert_close(result, 0.98 * image + 0.02 * signs, atol=1e-15, rtol=0)


def test_only_the_losses_of_the_paper_can_be_swapped() -> None:
    with pytest.raises(InputError, match="expected an objective of the paper"):
        FgsmWang2024(objective=margin)
    assert FgsmWang2024(objective=margin, swapped=False).swapped is False
    assert FgsmWang2024(objective=soft_dice).swapped


def test_a_random_blend_has_a_sign_of_either_kind_and_a_blend_is_within_its_limit() -> None:
    ball, image = Blend(0.02), images()
    signs = (ball.sample(image, [1, 2, 3]) - 0.98 * image) / 0.02
    inside = (image > 0.03) & (image < 0.97)  # elsewhere it is cut to [0, 1]
    torch.testing.assert_close(signs[inside].abs(), torch.ones_like(signs[inside]))
    assert signs[inside].mean().abs() < 0.1
    assert (ball.limit, Blend().eps) == (0.04, 0.009)
    ends = [ball.project(image + far, image) for far in (-1, 0, 1)]
    expected = [(0.98 * image - 0.02).clamp(0, 1), image, (0.98 * image + 0.02).clamp(0, 1)]
    torch.testing.assert_close(torch.stack(ends), torch.stack(expected), atol=1e-15, rtol=0)


def test_a_batch_is_a_plain_stack() -> None:
    assert Batch(images(), images() > 0.5, ()).image.shape == (3, 1, *SHAPE)


@dataclass(frozen=True)
class Levelled:
    """Log-odds are the image; after n steps of 0.1 from 0.5 as many of four pixels are lost as the table says.

    Attributes:
        lost: after no step, after one, ...
        shown: the images that the model was called with, in order.
    """

    lost: tuple[int, ...] = (0,)
    shown: list[Tensor] = field(default_factory=list)
    task: Task = ORGAN

    def __call__(self, image: Tensor) -> LogOdds:
        self.shown.append(image.detach().clone())
        return image * 1.0

    def decide(self, log_odds: LogOdds) -> Mask:
        number = ((log_odds.flatten(1).mean(1) - 0.5) * 10).round().long().tolist()
        kept = [torch.arange(4) >= self.lost[n] for n in number]
        return torch.stack(kept).view(-1, 1, 2, 2)


def upwards(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
    return log_odds.flatten(1).mean(1)


def harm_of(lost: int) -> float:
    return 1 - 2 * (4 - lost) / (8 - lost)


ALL = torch.ones(1, 1, 2, 2, dtype=torch.bool)


@pytest.mark.parametrize("worst", range(5))
def test_pgd_returns_its_worst_iterate_wherever_that_lies(worst: int) -> None:
    """Four steps up, and the harm rises and falls: the first, the last and each in between may be the worst."""
    lost = tuple(3 if n == worst else n % 2 for n in range(5))
    attack = PGD(Linf(0.4), upwards, steps=4, step_size=0.25, random_start=False)
    best = attack(Levelled(lost), GREY, ALL, [1])
    torch.testing.assert_close(best.image, GREY + 0.1 * worst)
    assert best.harm.item() == pytest.approx(harm_of(3))
    assert best.size.item() == pytest.approx(0.1 * worst)
    last = replace(attack, keep_worst=False)(Levelled(lost), GREY, ALL, [1])
    torch.testing.assert_close(last.image, GREY + 0.4)
    assert last.harm.item() == pytest.approx(harm_of(lost[4]))


def test_each_sample_keeps_its_own_worst_iterate() -> None:
    attack = PGD(Linf(0.2), upwards, steps=2, step_size=0.5, random_start=False)
    image = torch.cat([GREY, GREY + 0.2])
    result = attack(Levelled((0, 2, 0, 0, 3)), image, ALL.expand(2, -1, -1, -1), [1, 2])
    torch.testing.assert_close(result.image, torch.cat([GREY + 0.1, GREY + 0.4]))
    assert result.harm.tolist() == pytest.approx([harm_of(2), harm_of(3)])


CLIMBERS = [
    name
    for name in registry.names("attack")
    if {"objective", "steps"} <= set(registry.find(name).fields)
    and registry.find(name).family in ("gradient", "physical", "reconstruction")
]


@pytest.mark.parametrize("name", CLIMBERS)
def test_an_objective_is_told_how_much_of_the_attack_is_done(name: str) -> None:
    fractions: list[float] = []

    def listening(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        fractions.append(progress)
        return bce(log_odds, target)

    image, model = images(), oracle(ORGAN)
    replace(registry.build(f"{name}(steps=4)", "attack"), objective=listening)(
        model, image, truth(model, image), range(3)
    )
    ticks = [fraction for fraction, _ in groupby(fractions)]  # one of each step, and of a last look
    assert ticks in ([0, 0.25, 0.5, 0.75], [0, 0.25, 0.5, 0.75, 1])


def still(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
    """Gives no direction, so that an attack stays where it begins."""
    return 0 * log_odds.flatten(1).sum(1)


@pytest.mark.parametrize("keep_worst", [True, False])
def test_restarts_begin_elsewhere_and_each_sample_keeps_the_worst_of_them(keep_worst: bool) -> None:
    image = 0.5 + 0.05 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target, seeds = image >= 0.5, list(range(8))
    starts: list[Tensor] = []

    def noting(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        starts.append(log_odds.detach() / 10 + 0.5)  # the oracle, taken back
        return still(log_odds, target)

    attack = PGD(Linf(0.05), noting, steps=1, restarts=4, keep_worst=keep_worst)
    result = attack(oracle(ORGAN), image, target, seeds)
    assert len(starts) == 4
    assert all(
        (later - other).abs().amax((1, 2, 3)).min() > 0.01 for n, later in enumerate(starts) for other in starts[:n]
    )
    torch.testing.assert_close(starts[0], attack.ball.sample(image, seeds))
    harms = torch.stack([harm(start >= 0.5, target).double() for start in starts])
    sizes = torch.stack([attack.ball.size(start, image) for start in starts])
    worst = [max(range(4), key=lambda run: (harms[run, i].item(), -sizes[run, i].item())) for i in range(8)]
    assert len(set(worst)) > 2  # no restart is the worst of all samples
    torch.testing.assert_close(result.harm, harms.amax(0))
    torch.testing.assert_close(result.image, torch.stack([starts[run][i] for i, run in enumerate(worst)]))


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [
        # directions (1, -1), (-1/2, 3/2), (-3/2, 1/2), each of mean magnitude 1, as objectives of scale 4, 2 and 2
        (0.0, [(0.6, 0.4), (0.5, 0.5), (0.4, 0.6)]),
        # accumulated: (1, -1), (-0.25, 1.25), (-1.5625, 0.8125)
        (0.25, [(0.6, 0.4), (0.5, 0.5), (0.4, 0.6)]),
        # accumulated: (1, -1), (0.5, 0.5), (-1, 1)
        (1.0, [(0.6, 0.4), (0.7, 0.5), (0.6, 0.6)]),
    ],
)
def test_three_steps_of_mi_fgsm_worked_by_hand(momentum: float, expected: list[tuple[float, float]]) -> None:
    slopes = torch.tensor([[4.0, -4.0], [-1.0, 3.0], [-3.0, 1.0]], dtype=torch.float64)

    def sloping(log_odds: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        return (log_odds.flatten(1) * slopes[round(3 * progress)] / 10).sum(1)

    image = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    shown: list[Tensor] = []

    class Watched:
        task = ORGAN

        def __call__(self, image: Tensor) -> LogOdds:
            shown.append(image.detach().flatten())
            return 10 * image - 5

        def decide(self, log_odds: LogOdds) -> Mask:
            return log_odds >= 0

    mi_fgsm(Linf(0.3), sloping, steps=3, momentum=momentum)(Watched(), image, image > 0, [1])
    torch.testing.assert_close(torch.stack(shown[1:]), torch.tensor(expected, dtype=torch.float64))


@st.composite
def finds(draw: st.DrawFn, samples: int = 5) -> Adversarial:
    """Few values, so that ties are common; an image is told by its only pixel."""

    def values(choices: list[float]) -> Tensor:
        return torch.tensor(draw(st.lists(st.sampled_from(choices), min_size=samples, max_size=samples)))

    return Adversarial(values([0.1, 0.2, 0.3]).view(-1, 1, 1, 1), values([0.0, 0.5, 1.0]), values([0.0, 0.01, 0.02]))


def same(first: Adversarial, other: Adversarial) -> bool:
    return all(torch.equal(getattr(first, name), getattr(other, name)) for name in ("image", "harm", "size"))


@given(finds(), finds(), finds())
def test_the_worse_of_finds_is_an_algebra(a: Adversarial, b: Adversarial, c: Adversarial) -> None:
    assert same((a | b) | c, a | (b | c))
    assert same(a | a, a)
    first, other = a | b, b | a
    assert torch.equal(first.harm, other.harm)
    assert torch.equal(first.size, other.size)
    tied = (a.harm == b.harm) & (a.size == b.size)
    assert torch.equal(first.image[~tied], other.image[~tied])
    assert torch.equal(first.image[tied], a.image[tied])


@given(finds(), finds())
def test_the_worse_of_two_finds_is_the_more_harmful_and_then_the_smaller(a: Adversarial, b: Adversarial) -> None:
    worse = a | b
    for i in range(5):
        harmful = max((a, b), key=lambda result: (result.harm[i].item(), -result.size[i].item()))
        assert (worse.harm[i], worse.size[i]) == (harmful.harm[i], harmful.size[i])
        assert worse.image[i] == harmful.image[i]
