"""Attacks made of attacks: the worst of each image, and options that reach inside."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from helpers.oracle_scene import EPS, ORGAN, SHAPE, images, oracle, truth
from PIL import Image as Picture
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.composed.for_organ import ForOrgan
from medseg_attack.attacks.composed.restarts import Restarts
from medseg_attack.attacks.composed.sea import sea
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD, fgsm
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.metrics.harm import harm
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.runs.grid import cells
from medseg_attack.runs.rows import Row
from medseg_attack.runs.study import Study
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.objectives.losses import margin
from medseg_attack.types import (
    Adversarial,
    Ball,
    Batch,
    Binds,
    Case,
    Image,
    Mask,
    Model,
    Setting,
    Storage,
    Task,
    Window,
)

SEEDS = [1, 2, 3]


@dataclass(frozen=True)
class Fixed:
    """Finds what it is told to find."""

    harms: tuple[float, ...]
    mark: float
    asked: list[list[int]]
    ball: Ball = Linf(EPS)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        self.asked.append(list(seeds))
        harms = torch.tensor(self.harms, dtype=image.dtype)
        return Adversarial(torch.full_like(image, self.mark), harms, torch.full_like(harms, self.mark))


def test_each_image_keeps_the_worst_of_all_attacks() -> None:
    image, asked = images(), [[0]]
    result = BestOf((Fixed((0.1, 0.9, 0.5), 0.1, asked), Fixed((0.2, 0.3, 0.5), 0.05, asked)))(
        oracle(ORGAN), image, image > 0.5, SEEDS
    )
    assert result.harm.tolist() == [0.2, 0.9, 0.5]
    assert result.image[:, 0, 0, 0].tolist() == [0.05, 0.1, 0.05]  # between equals the smaller change


def test_what_is_left_of_a_batch_is_what_is_not_settled() -> None:
    """At harm 0.99 the search goes on; at 1 an image keeps what it has, and no pass is spent on it."""
    image = images()
    later: list[list[int]] = []
    first, second = Fixed((1.0, 0.99, 1.0), 0.1, []), Fixed((1.0,), 0.05, later)
    result = BestOf((first, second, second))(oracle(ORGAN), image, image > 0.5, SEEDS)
    assert later == [[2]]  # by its own seed, and nobody is asked again
    assert result.image[:, 0, 0, 0].tolist() == [0.1, 0.05, 0.1]
    model, image = oracle(ORGAN), torch.cat((images(0.1)[:1], images()[:1], images(0.1)[:1]))
    target = truth(model, image)
    ball = Linf(0.3)  # holds what takes the organ of the first and the last
    suite = BestOf((fgsm(ball), PGD(ball, steps=3), PGD(ball, margin, steps=3)))
    alone = [suite(model, image[i : i + 1], target[i : i + 1], SEEDS[i : i + 1]) for i in range(3)]
    together = suite(model, image, target, SEEDS)
    assert together.passes is not None
    assert torch.equal(together.passes, torch.cat([result.passes for result in alone if result.passes is not None]))
    assert len(together.passes.unique(dim=0)) == 2
    for name in ("image", "harm", "size"):  # a kernel may sum another batch in another order
        parts = torch.cat([getattr(part, name) for part in alone])
        torch.testing.assert_close(getattr(together, name), parts, atol=1e-9, rtol=0)


def backwards_of(cases: list[Case], attack: object) -> list[int]:
    """The backward passes of each row of a batch, whose images and rows are those of each case by itself.

    In double precision: in single precision another batch size may take another kernel and end in another pixel.
    """
    model = oracle(ORGAN)
    (together,) = attack_chunk(model, [Batch.of(cases)], [attack], keep_images=True)
    for n, case in enumerate(cases):
        (alone,) = attack_chunk(model, [Batch.of([case])], [attack], keep_images=True)
        torch.testing.assert_close(alone.images[0], together.images[n], atol=1e-9, rtol=0)
        rows = [row for row in together.rows if row.case == case.id]
        for batch_row, alone_row in zip(rows, alone.rows, strict=True):
            assert _flat(batch_row) == pytest.approx(_flat(alone_row), abs=1e-9, nan_ok=True)
    return [row.backwards for row in together.rows]


def _flat(row: Row) -> dict[str, object]:
    fields = asdict(row)
    extra = fields.pop("extra")
    return fields | extra


@pytest.mark.parametrize("held", [False, True], ids=["anywhere", "within a mask"])
def test_what_is_left_knows_its_files_and_regions(held: bool, tmp_path: Path) -> None:
    """Through the loop, where images are stored, regions differ and a batch shrinks: as each case by itself."""
    cases = [_stored(images(spread)[0], f"case {n}") for n, spread in enumerate((0.1, 0.5, 0.1))]
    anywhere = registry.build(
        "best_of((fgsm, pgd(steps=2), pgd(objective=margin, steps=2)))", "attack", {"ball": Linf(0.3)}
    )
    Picture.new("L", SHAPE[::-1], 255).save(tmp_path / "mask.png")
    attack = registry.within(anywhere, f"mask:{tmp_path / 'mask.png'}") if held else anywhere
    assert backwards_of(cases, attack) == [1, 5, 1]


def test_levels_of_some_images_are_the_levels_of_these() -> None:
    """Every field, whatever fields there are: types, slopes, windows and padding that differ from image to image."""
    cases = []
    for n, dtype in enumerate((torch.uint8, torch.int16, torch.float32)):
        storage = Storage((images(0.5)[n] * 200).to(dtype), slope=1.0 + n, inter=-3.0 * n, padding=(10 * n, 11 * n))
        case = _stored(images(0.5)[n], f"case {n}")
        cases.append(replace(case, storage=storage, window=Window(5.0 * n, 200 + n)))
    levels = StoredValues.of(cases, "cpu")
    these = StoredValues.of([cases[2], cases[0]], "cpu")
    assert levels is not None
    selected = levels.at(torch.tensor([2, 0]))
    for field in fields(StoredValues):
        values = [getattr(case, field.name) for case in (selected, these)]
        for part, expected in zip(
            *((value,) if isinstance(value, bool) else tuple(value) for value in values), strict=True
        ):
            assert torch.equal(part, expected) if isinstance(part, Tensor) else part == expected, field.name


@pytest.mark.parametrize("spec", ["grow(mm=2)", "shrink(mm=2)", "shift(dx_mm=4)"])
def test_a_goal_on_some_images_is_the_goal_bound_to_these(spec: str) -> None:
    cases = [_stored(images(0.5)[0], f"case {n}", mm) for n, mm in enumerate((0.5, 1.0, 2.0))]
    goal, setting = registry.build(spec, "goal"), Setting(oracle(ORGAN).task, tuple(cases))
    truth = torch.zeros(3, 1, *SHAPE, dtype=torch.bool)
    truth[..., 3:-3, 3:-3] = True
    index = torch.tensor([2, 0])
    wanted = goal.bind(setting)(truth)[index]
    assert torch.equal(goal.bind(setting.at(index))(truth[index]), wanted)
    assert not torch.equal(wanted[0], wanted[1])  # in mm


KNOWING = [name for name in registry.names("ball") if isinstance(registry.build(name, "ball"), Binds)]


@pytest.mark.parametrize("name", KNOWING)
def test_a_ball_of_some_of_its_cases_is_the_ball_bound_to_these(name: str) -> None:
    cases = tuple(_stored(images(spread)[0], f"case {n}", 1.0 + n) for n, spread in enumerate((0.1, 0.5, 0.3)))
    ball, task = registry.build(name, "ball"), oracle(ORGAN).task
    selected = ball.bind(Setting(task, cases)).bind(Setting(task, cases).at(torch.tensor([2, 0])))
    these = ball.bind(Setting(task, (cases[2], cases[0])))
    x0 = torch.stack([cases[2].image, cases[0].image]).double()
    torch.testing.assert_close(selected.project(x0 + 0.3, x0), these.project(x0 + 0.3, x0), atol=1e-12, rtol=0)
    torch.testing.assert_close(selected.size(x0.flip(2), x0), these.size(x0.flip(2), x0), atol=1e-12, rtol=0)
    if ball.moves_anatomy:
        flow = torch.full((2, x0.ndim - 2, *SHAPE), 0.5, dtype=torch.float64)
        torch.testing.assert_close(selected.length(flow), these.length(flow), atol=1e-12, rtol=0)
        assert len(selected.length(flow).unique()) == 2  # mm, not pixels


@pytest.mark.parametrize("goal", ["grow(mm=2)", "shift(dx_mm=3)", "all_background"])
def test_a_suite_with_a_goal_runs_on_what_is_left(goal: str) -> None:
    """Through the loop, whose rows ask the suite for its goal: as each case by itself."""
    cases = [_stored(images(spread)[0], f"case {n}", 1.0 + n) for n, spread in enumerate((0.1, 0.5, 0.1))]
    spec = f"best_of((fgsm, pgd(steps=2), pgd(objective=toward(bce, {goal}), steps=2)))"
    attack = registry.build(spec, "attack", {"ball": Linf(0.3)})
    assert backwards_of(cases, attack) == [1, 5, 1]


def _stored(image: Tensor, name: str, mm: float = 1.0) -> Case:
    stored = (image * 255).round().to(torch.uint8)
    shown = stored.double() / 255
    return Case(name, name, name, shown, shown > 0.5, (mm, mm), Window(0, 255), storage=Storage(stored))


def test_the_suite_is_at_least_as_strong_as_each_of_its_members() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    suite = sea(Linf(EPS), steps=6)
    worst = suite(model, image, target, SEEDS).harm
    for member in suite.attacks:
        assert (worst >= member(model, image, target, SEEDS).harm - 1e-12).all(), registry.spec(member)


def test_restarts_are_independent_runs_of_which_the_first_is_the_attack() -> None:
    model, image = oracle(ORGAN, "blurred_oracle"), images()
    target = truth(model, image)
    attack = PGD(Linf(EPS), steps=1)
    once = attack(model, image, target, SEEDS)
    assert torch.equal(Restarts(attack, 1)(model, image, target, SEEDS).image, once.image)
    metered = CountedModel(model)
    several = Restarts(attack, 4)(metered, image, target, SEEDS)
    assert metered.backwards == 4
    assert (several.harm >= once.harm).all()
    assert (several.harm > once.harm).any()


def test_attacks_of_two_balls_have_no_worst() -> None:
    with pytest.raises(InputError, match="attacks of one ball"):
        BestOf((PGD(), PGD(L2(1.0))))
    with pytest.raises(InputError, match="got no attack"):
        BestOf(())
    with pytest.raises(InputError, match="n >= 1"):
        Restarts(n=0)


ORGANS = Task("two", ("background", "a", "b"), exclusive=True)


class Pulls(torch.nn.Module):
    """Organ a grows where the image is bright, organ b where it is dark: who shrinks one, grows the other."""

    def forward(self, image: Tensor) -> Tensor:
        z = 10 * (image - 0.5)
        return torch.cat((torch.full_like(z, 0.1), z, -0.5 * z), 1)


def test_an_attack_for_one_organ_takes_that_organ_down() -> None:
    model = SegModel(Pulls(), ORGANS).double()
    image = images(0.2)
    target = truth(model, image)
    for organ in ("a", "b"):
        k = ORGANS.classes.index(organ)
        whole = PGD(Linf(EPS), steps=10)(model, image, target, SEEDS)
        by_organ = ForOrgan(PGD(Linf(EPS), steps=10), organ)(model, image, target, SEEDS)
        taken, of_one = (
            harm(model.decide(model(result.image))[:, k : k + 1], target[:, k : k + 1]) for result in (whole, by_organ)
        )
        assert (of_one >= taken - 1e-12).all()
        torch.testing.assert_close(by_organ.harm, of_one.double())  # what it reports is that organ's


def test_one_organ_of_an_exclusive_task_is_decided_as_the_task_decides() -> None:
    from medseg_attack.attacks.composed.for_organ import _OneOrgan

    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Fixed:
        task = ORGANS

        def __call__(self, image: Tensor) -> Tensor:
            return softmax_log_odds(logits)

        def decide(self, log_odds: Tensor) -> Tensor:
            return torch.zeros_like(log_odds, dtype=torch.bool).scatter_(1, log_odds.argmax(1, keepdim=True), True)

    whole = Fixed().decide(Fixed()(logits))
    for k in range(3):
        single = _OneOrgan(Fixed(), k)
        log_odds = single(logits[:, :1])
        assert torch.equal(single.decide(log_odds), whole[:, k : k + 1])
        others = logits[:, [j for j in range(3) if j != k]].amax(1)
        torch.testing.assert_close(log_odds[:, 0], logits[:, k] - others)


def test_an_unknown_organ_is_told() -> None:
    model = SegModel(Pulls(), ORGANS).double()
    with pytest.raises(InputError, match="organ of two, got 'liver'; there is: a, b"):
        ForOrgan(fgsm(), "liver")(model, images(), truth(model, images()), SEEDS)
    # background is no organ
    with pytest.raises(InputError, match="got 'background'"):
        ForOrgan(fgsm(), "background")(model, images(), truth(model, images()), SEEDS)


def test_options_reach_the_attacks_that_an_attack_is_made_of() -> None:
    composed = registry.build(
        "best_of(attacks=(pgd(steps=3), restarts(apgd), square))",
        "attack",
        {"steps": 9, "objective": margin, "ball": L2(0.5)},
    )
    pgd, apgd, square = composed.attacks[0], composed.attacks[1].attack, composed.attacks[2]
    assert (pgd.steps, apgd.steps) == (3, 9)
    assert pgd.objective is apgd.objective is square.objective is margin
    assert composed.ball == L2(0.5)
    assert registry.with_eps(composed, 0.1).attacks[1].attack.ball == L2(0.1)
    # also those that stand in defaults
    assert {attack.steps for attack in registry.build("best_of", "attack", {"steps": 9}).attacks} == {9}
    assert registry.build("restarts(n=2)", "attack", {"steps": 9}).attack.steps == 9
    assert registry.build("sea", "attack", {"steps": 9}) == sea(steps=9)


def test_a_study_sets_losses_steps_and_norms_within() -> None:
    study = Study(
        data="d",
        models=["m"],
        attacks=["best_of(attacks=(pgd, apgd(steps=4)))", "sea"],
        losses=["margin", "js"],
        steps=7,
        norm="l2",
        eps=["0.5"],
        control=False,
    )
    grid = cells(study)
    assert [(cell.label, cell.loss) for cell in grid] == [
        ("best_of(l2, attacks=(pgd(steps=7), apgd(steps=4)))", "margin"),
        ("best_of(l2, attacks=(pgd(steps=7), apgd(steps=4)))", "js"),
        ("sea(l2, steps=7)", ""),
    ]
    pgd, apgd = grid[0].attack.attacks
    assert (pgd.steps, apgd.steps, pgd.objective, pgd.ball) == (7, 4, margin, L2(0.5))
