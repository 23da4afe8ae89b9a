"""A network whose gradient is NaN on one case: every attack and ball goes on, and that case alone is named."""

import pytest
import torch
from helpers.short_attacks import ATTACKS, DARK, cases, short
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.finite import FiniteModel
from medseg_attack.attacks.gradient.pgd import PGD, fgsm
from medseg_attack.errors import NoGradientError, NotFiniteError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry.declared import declarations
from medseg_attack.registry.passes import passes_of
from medseg_attack.runs.rows import Row
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Attack, Ball, Batch, Fittable, Task

TASK = Task("lost", ("a", "b"))


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is NaN on pixels of a dark image."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        (x,) = ctx.saved_tensors
        dark = x.flatten(1).mean(1) < 0.25
        where = torch.zeros_like(grad, dtype=torch.bool)
        where[..., ::2] = True  # pixels of every other column
        return torch.where(where & dark.view(-1, 1, 1, 1), torch.nan, grad)


class Net(nn.Module):
    def __init__(self, overflows: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
        self.overflows = overflows

    def forward(self, x: Tensor) -> Tensor:
        return 6 * self.last(torch.tanh(self.first(Overflow.apply(x) if self.overflows else x)))  # type: ignore[no-untyped-call]


class Unanswered(Net):
    """Answers NaN on a dark image that was touched."""

    def forward(self, x: Tensor) -> Tensor:
        (clean,) = (case.image for case in cases() if case.id == DARK)
        dark = x.flatten(1).mean(1) < 0.25
        touched = dark & (x.shape[-2:] == clean.shape[-2:])
        touched &= (x - clean if x.shape[-2:] == clean.shape[-2:] else x).abs().flatten(1).amax(1) > 1e-6
        return torch.where(touched.view(-1, 1, 1, 1), torch.nan, super().forward(x))


def rows_of(attack: Attack, *, overflows: bool, net: type[Net] = Net) -> dict[str, Row]:
    """The row of each case under the attack, of the first class."""
    model = SegModel(net(overflows), TASK).eval()
    batch = Batch.of(cases())
    with frozen(model):
        if isinstance(attack, Fittable):
            attack = attack.with_learned(attack.fit(FiniteModel(model), [Batch.of(cases()[::2])], seed=0))
        (result,) = attack_chunk(model, [batch], [attack])
    return {row.case: row for row in reversed(result.rows)}


def check(attack: Attack) -> None:
    rows = rows_of(attack, overflows=True)
    healthy = rows_of(attack, overflows=False)
    lost = {case: row.extra.get("without_gradient", 0.0) for case, row in rows.items()}
    asks = any(row.backwards for row in healthy.values())
    assert lost == {case: float(asks and case == DARK) for case in rows}
    for case in set(rows) - {DARK}:  # another case's NaN does not touch them
        mine, other = rows[case], healthy[case]
        assert (mine.n_adv, mine.hit_adv, mine.size) == (other.n_adv, other.hit_adv, other.size)
    assert all(row.size == row.size and row.size < float("inf") for row in rows.values())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_goes_on_and_names_the_case(name: str) -> None:
    check(short(name))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_goes_on_where_an_attacked_image_has_no_answer(name: str) -> None:
    attack = short(name)
    rows, healthy = rows_of(attack, overflows=False, net=Unanswered), rows_of(attack, overflows=False)
    for case in set(rows) - {DARK}:
        mine, other = rows[case], healthy[case]
        assert (mine.n_adv, mine.hit_adv, mine.size) == (other.n_adv, other.hit_adv, other.size)
    lost = {case for case, row in rows.items() if row.extra.get("without_answer")}
    assert lost <= {DARK} or name == "boundary"  # which walks in from images of noise, some of which are dark
    lost &= {DARK}
    if rows[DARK].linf > 1e-4:  # an image without an answer is scored as if no organ were there
        assert (lost, rows[DARK].n_adv) == ({DARK}, 0)


def nothing(log_odds: Tensor, target: Tensor, progress: float) -> Tensor:
    """An objective without a slope."""
    return (0 * log_odds).flatten(1).sum(1)


def lost(log_odds: Tensor, target: Tensor, progress: float) -> Tensor:
    """An objective whose every gradient is NaN."""
    return (0 * log_odds).flatten(1).sum(1).sqrt()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_objectives_that_share_a_pass_have_faults_of_their_own(order: tuple[int, ...]) -> None:
    objectives = [(bce, ""), (nothing, "without_slope"), (lost, "without_gradient")]
    sweeps = [objectives[n] for n in order]
    model, names = SegModel(Net(False), TASK).eval(), [fault for _, fault in sweeps]
    attacks = [fgsm(Linf(eps), objective) for eps in (1 / 255, 8 / 255) for objective, _ in sweeps]
    with frozen(model):
        results = attack_chunk(model, [Batch.of(cases())], attacks)
    for fault, result in zip(names * 2, results, strict=True):
        for row in result.rows:
            met = {name for name in ("without_slope", "without_gradient") if row.extra.get(name)}
            # a gradient that is NaN everywhere is 0 for the attack, so that its slope is lost as well
            assert met - {"without_slope" if fault == "without_gradient" else ""} == {fault} - {""}
            assert (row.size > 0) == (fault == "")


class Cut(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_needs_no_gradient_or_says_that_there_is_none(name: str) -> None:
    attack = short(name)
    passes = passes_of(registry.spec_of(attack), {each.name: each for each in declarations("attack")})
    assert passes is not None
    if passes.backwards:
        with pytest.raises(NoGradientError, match=r"got none \(MA002\); remove detach"):
            rows_of(attack, overflows=False, net=Cut)
        return
    try:  # by queries, or on what it learned
        assert len(rows_of(attack, overflows=False, net=Cut)) == 3
    except NoGradientError:
        assert isinstance(attack, Fittable)


def test_a_case_whose_every_gradient_is_0_is_named() -> None:
    class Flat(Net):
        def forward(self, x: Tensor) -> Tensor:
            dark = (x.flatten(1).mean(1) < 0.25).view(-1, 1, 1, 1)
            return super().forward(torch.where(dark, x.detach(), x))

    for attack in (PGD(steps=3), PGD(steps=1, random_start=False), registry.build("apgd(steps=4)", "attack")):
        rows = rows_of(attack, overflows=False, net=Flat)
        assert {case for case, row in rows.items() if row.extra["without_slope"]} == {DARK}
    assert all("without_slope" not in row.extra for row in rows_of(PGD(steps=3), overflows=False).values())


@pytest.mark.parametrize("ball", [name for name in registry.names("ball") if name not in ("within", "channels")])
def test_every_ball_keeps_what_a_gradient_that_is_not_finite_cannot_move(ball: str) -> None:
    built: Ball = registry.with_eps(registry.build(ball, "ball"), 0.1)
    if built.moves_anatomy or built.unit:
        pytest.skip(f"{ball} belongs to attacks of its own, which the test of attacks runs")
    check(PGD(built, steps=3))


def test_a_case_with_some_lost_pixels_is_still_attacked_on_the_others() -> None:
    rows = rows_of(PGD(steps=3, random_start=False), overflows=True)
    assert rows[DARK].size > 0


def test_an_answer_that_is_not_finite_names_the_cases_that_have_it() -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            dark = (x.flatten(1).mean(1) < 0.25).view(-1, 1, 1, 1)
            return torch.where(dark, torch.nan, torch.cat((x, x), 1))

    with pytest.raises(NotFiniteError, match=f"got NaN or infinity on {DARK}; train"):
        attack_chunk(SegModel(Nan(), TASK).eval(), [Batch.of(cases())], [PGD(steps=1)])
