"""A network whose gradient is NaN on one case: every attack and ball goes on, and that case alone is named."""

import pytest
import torch
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import NotFiniteError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runs.rows import Row
from medseg_attack.types import Attack, Ball, Batch, Case, Fittable, Storage, Task, Window

TASK = Task("lost", ("a", "b"))
EPS = 8 / 255
# replay asks no model; vafa_hanif2023 stretches what it shows the model, so that no image is dark
ATTACKS = [name for name in registry.names("attack") if name not in ("replay", "vafa_hanif2023", "worst_prompt")]
SPECS = {
    "boundary": "boundary(queries=20)",
    "fgsm_wang2024": "fgsm_wang2024(channels=1)",
    "spsa": "spsa(queries=20, directions=2, grid=6)",
    "transfer": "transfer(surrogate=oracle)",
    "zoo": "zoo(queries=20, coordinates=4)",
}
FEW = {"steps": 3, "searches": 2, "queries": 12}
DARK = "case 1"  # the case on which the gradient is lost


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


def cases() -> list[Case]:
    rng = torch.Generator().manual_seed(8)
    result = []
    for n in range(3):
        stored = torch.randint(60, 250, (1, 12, 10), generator=rng).to(torch.uint8)
        stored = stored // 4 if f"case {n}" == DARK else stored
        image = (stored.double() / 255).float()
        target = torch.rand(2, 12, 10, generator=rng) < 0.4
        storage = Storage(stored)
        name = f"case {n}"
        result.append(Case(name, name, f"p{n}", image, target, (1.0, 1.0), Window(0.0, 255.0), storage=storage))
    return result


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
            attack = attack.with_learned(attack.fit(model, [Batch.of(cases()[::2])], seed=0))
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
    short = {} if name in SPECS else FEW
    attack: Attack = registry.with_eps(registry.build(SPECS.get(name, name), "attack", short), EPS)
    check(attack)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_goes_on_where_an_attacked_image_has_no_answer(name: str) -> None:
    short = {} if name in SPECS else FEW
    attack: Attack = registry.with_eps(registry.build(SPECS.get(name, name), "attack", short), EPS)
    rows, healthy = rows_of(attack, overflows=False, net=Unanswered), rows_of(attack, overflows=False)
    for case in set(rows) - {DARK}:
        mine, other = rows[case], healthy[case]
        assert (mine.n_adv, mine.hit_adv, mine.size) == (other.n_adv, other.hit_adv, other.size)
    lost = {case for case, row in rows.items() if row.extra.get("without_answer")}
    assert lost <= {DARK} or name == "boundary"  # which walks in from images of noise, some of which are dark
    lost &= {DARK}
    if rows[DARK].linf > 1e-4:  # an image without an answer is scored as if no organ were there
        assert (lost, rows[DARK].n_adv) == ({DARK}, 0)


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
