"""Goals on masks that can be drawn by hand, `toward` them, and the rules of success."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scans import palette_png
from PIL import Image

from medseg_attack import registry
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByDice, ByMiou, ByPixels, Criterion
from medseg_attack.threat.goals.masks import Erase, Grow, Shift, Shrink, Swap, all_background
from medseg_attack.threat.goals.stored import AnotherPatient, FromFile
from medseg_attack.threat.goals.toward import Toward
from medseg_attack.threat.objectives.losses import bce, ce, margin
from medseg_attack.threat.objectives.per_task import for_task, progress_of
from medseg_attack.threat.objectives.weighted import REVERSED, cosine_bce, cosine_ce, masked_bce, progressive_ce
from medseg_attack.types import Case, CaseRef, Donors, Mask, Setting, Stack, Task, Window

FREE = Task("free", ("a", "b"))
ONE = Task("one", ("background", "a", "b"), exclusive=True)
TASKS = pytest.mark.parametrize("task", [FREE, ONE], ids=["overlapping", "exclusive"])


def drawing(rows: list[str], task: Task) -> Mask:
    """A mask of one case from rows of letters."""
    organs = [torch.tensor([[letter == name for letter in row] for row in rows]) for name in ("a", "b")]
    layers = [~(organs[0] | organs[1]), *organs] if task.exclusive else organs
    return torch.stack(layers)[None]


def case(
    target: Mask, spacing_mm: tuple[float, float] = (1.0, 1.0), group: str = "p", stack: Stack | None = None
) -> Case:
    return Case(f"{group}1", group, group, torch.zeros(1, *target.shape[1:]), target, spacing_mm, Window(0, 1), stack)


@dataclass(frozen=True, eq=False)
class Drawn(Goal):
    """A goal that is one mask, whatever the truth."""

    mask: Mask

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        return self.mask


def bound(goal: Goal, task: Task, truth: Mask, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Goal:
    return bind(goal, Setting(task, tuple(case(one, spacing_mm) for one in truth)))


@TASKS
class TestGoals:
    def wants(
        self, goal: Goal, task: Task, before: list[str], after: list[str], spacing_mm: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        truth = drawing(before, task)
        kept = truth.clone()
        assert torch.equal(bound(goal, task, truth, spacing_mm)(truth), drawing(after, task))
        assert torch.equal(truth, kept)

    def test_erase(self, task: Task) -> None:
        self.wants(Erase("a"), task, ["aab.", ".abb"], ["..b.", "..bb"])

    def test_all_background(self, task: Task) -> None:
        self.wants(all_background(), task, ["aab.", ".abb"], ["....", "...."])

    def test_swap(self, task: Task) -> None:
        self.wants(Swap("b", "a"), task, ["aab.", ".abb"], ["bba.", ".baa"])

    def test_shift_is_in_mm_and_loses_what_leaves(self, task: Task) -> None:
        self.wants(Shift(dx_mm=4, dy_mm=1), task, ["ab...", ".b..a"], [".....", "..ab."], spacing_mm=(1.0, 2.0))
        self.wants(Shift(dx_mm=-2, dy_mm=0), task, ["ab.a", "b..."], ["b.a.", "...."], spacing_mm=(1.0, 2.0))
        self.wants(Shift(dx_mm=40, dy_mm=0), task, ["ab.a", "b..."], ["....", "...."])
        self.wants(Shift(dx_mm=0, dy_mm=-1e308), task, ["ab.a", "b..."], ["....", "...."], spacing_mm=(0.5, 1.0))

    def test_grow_is_in_mm_and_takes_background_alone_of_an_exclusive_task(self, task: Task) -> None:
        self.wants(Grow(2.0), task, [".....", "..a..", "....."], ["..a..", "..a..", "..a.."], spacing_mm=(2.0, 3.0))
        if task.exclusive:
            self.wants(Grow(1.0), task, ["...", "ab.", "..."], ["ab.", "abb", "ab."])

    def test_shrink_is_in_mm_and_the_edge_takes_nothing(self, task: Task) -> None:
        self.wants(Shrink(1.0), task, ["aaa..", "aaa..", "aaa..", "....."], ["aa...", "aa...", ".....", "....."])
        self.wants(Shrink(1.0), task, ["aaa..", "aaa..", "....."], [".....", ".....", "....."], spacing_mm=(0.4, 0.4))

    def test_a_mask_in_a_file_is_stretched_onto_the_grid(self, task: Task, tmp_path: Path) -> None:
        labels = np.array([[0, 1], [2, 0]], np.uint8)
        Image.fromarray(labels).save(tmp_path / "wanted.png")
        palette_png(tmp_path / "palette.png", labels)
        np.save(tmp_path / "wanted.npy", labels)
        for name in ("wanted.png", "palette.png", "wanted.npy"):
            self.wants(FromFile(str(tmp_path / name)), task, ["....", "...."], ["..aa", "bb.."])

    @pytest.mark.parametrize(
        ("goal", "message"),
        [
            (Erase("liver"), "to name an organ of"),
            (Erase("background"), "to name an organ of"),
            (Swap("a", "liver"), "got 'liver'"),
            (Swap("a", "a"), "two organs"),
            (FromFile("nowhere.png"), "expected a mask in nowhere.png, got no file"),
        ],
    )
    def test_what_is_not_there_is_told(self, task: Task, goal: Erase, message: str) -> None:
        with pytest.raises(InputError, match=message):
            goal.bind(Setting(task))


def test_class_numbers_that_the_task_does_not_have_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([[0, 7]]))
    with pytest.raises(InputError, match="class numbers from 0 to 2"):
        FromFile(str(tmp_path / "labels.npy")).bind(Setting(FREE))


def test_a_goal_in_mm_asks_for_its_cases() -> None:
    truth = drawing(["a."], FREE)
    with pytest.raises(InputError, match="to be bound to its 1 cases"):
        Shift().bind(Setting(FREE))(truth)


def test_cases_of_two_spacings_move_by_their_own() -> None:
    truth = drawing(["a....."], FREE).repeat(2, 1, 1, 1)
    goal = Shift(dx_mm=4).bind(Setting(FREE, (case(truth[0], (1.0, 1.0)), case(truth[1], (1.0, 2.0)))))
    assert torch.equal(goal(truth), torch.cat([drawing(["....a."], FREE), drawing(["..a..."], FREE)]))


def test_another_patient_gives_the_slice_of_the_same_height() -> None:
    masks = {"p": ["a...", "...."], "q": ["..b.", "...b"]}
    scans = {
        group: [case(drawing([row], FREE)[0], group=group, stack=Stack(i, 2, 5.0)) for i, row in enumerate(rows)]
        for group, rows in masks.items()
    }

    read: list[str] = []

    class Reading:
        def read(self, ref: CaseRef) -> Case:
            read.append(ref.id)
            return slices[ref.id]

    slices = {f"{one.id}{i}": one for scan in scans.values() for i, one in enumerate(scan)}
    refs = tuple(CaseRef(name, one.volume, one.group, (1, 4)) for name, one in slices.items())
    setting = Setting(FREE, tuple(scans["p"]), Donors(Reading(), refs))
    goal = AnotherPatient().bind(setting)
    truth = torch.stack([one.target for one in scans["p"]])
    wanted = goal(truth)
    assert torch.equal(wanted, torch.cat([drawing(["..b."], FREE), drawing(["...b"], FREE)]))
    assert torch.equal(AnotherPatient().bind(setting.at(torch.tensor([1])))(truth[1:]), wanted[1:])
    assert read == ["q10", "q11"]  # once, also for the goal on some of the cases
    with pytest.raises(InputError, match="a patient other than p"):
        AnotherPatient().bind(Setting(FREE, tuple(scans["p"]), Donors(Reading(), refs[:2])))
    with pytest.raises(InputError, match="takes masks of a data set, got none"):
        AnotherPatient().bind(Setting(FREE, tuple(scans["p"])))(truth)


def test_another_patients_slices_are_in_the_order_of_their_numbers_not_of_their_names() -> None:
    """Names stop sorting as numbers do after slice 999, and earlier in scans that a user named."""
    donor = case(drawing(["a..."], FREE)[0], group="q")
    refs = tuple(CaseRef(f"q_slice_{n}", "q", "q", (1, 4), index=n - 998) for n in (1000, 998, 999))
    read: list[str] = []

    class Reading:
        def read(self, ref: CaseRef) -> Case:
            read.append(ref.id)
            return donor

    for n in range(3):
        AnotherPatient().donor_of(case(donor.target, group="p", stack=Stack(n, 3, 5.0)), Donors(Reading(), refs))
    assert read == ["q_slice_998", "q_slice_999", "q_slice_1000"]


def test_toward_is_minus_the_objective_at_the_goal() -> None:
    log_odds = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    truth = drawing(["aab.", ".abb", "...."], FREE)
    wanted = Toward(bce, Erase("a").bind(Setting(FREE)))
    torch.testing.assert_close(wanted(log_odds, truth), -bce(log_odds, drawing(["..b.", "..bb", "...."], FREE)))
    with pytest.raises(InputError, match="bound to a task"):
        Toward(bce, Erase("a"))(log_odds, truth)


def test_toward_climbs_the_form_of_its_task() -> None:
    goal = Erase("a").bind(Setting(ONE))
    assert for_task(Toward(cosine_bce, goal, ByPixels()), ONE) == Toward(cosine_ce, goal, ByPixels())
    assert for_task(Toward(cosine_bce, Erase()), FREE) == Toward(cosine_bce, Erase())
    with pytest.raises(InputError, match="take cosine_bce"):
        for_task(Toward(cosine_ce, Erase()), FREE)
    model = registry.build("oracle", "model")(ONE).double().eval()
    image = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = model.decide(model(image))
    attacked = [PGD(Linf(0.2), Toward(one, goal), steps=2)(model, image, truth, [1]) for one in (cosine_bce, cosine_ce)]
    assert torch.equal(attacked[0].image, attacked[1].image)


@pytest.mark.parametrize("name", [registry.spec(objective) for objective in REVERSED])
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_what_weighs_entries_pushes_towards_a_goal_what_is_not_there_yet(name: str, progress: float) -> None:
    objective = registry.build(name, "objective")
    task = ONE if registry.find(name).exclusive else FREE
    goal = drawing(["aab.bbbbbb"] if task.exclusive else ["aa.....bb."], task)
    model = registry.build("oracle", "model")(task).double().eval()
    log_odds = torch.randn(goal.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3
    log_odds = (log_odds.log_softmax(1) if task.exclusive else log_odds).requires_grad_()
    reached = model.decide(log_odds.detach()) == goal
    reached = reached.all(1, keepdim=True).expand_as(goal) if task.exclusive else reached
    assert reached.any()
    assert not reached.all()
    climbed = Toward(objective, Drawn(goal).bind(Setting(task)))
    slope = torch.autograd.grad(climbed(log_odds, ~goal, progress).sum(), log_odds)[0]
    missing = ~reached & goal
    assert (slope[missing] > 0).all()
    if name.startswith("masked") or name.startswith("balanced") or (name.startswith("progressive") and progress == 0):
        assert (slope[reached] == 0).all()


def test_whether_steps_towards_a_goal_pay_is_told_without_masks() -> None:
    assert progress_of(Toward(masked_bce, Erase("a"))) == Toward(bce, Erase("a"))
    assert progress_of(Toward(bce, Erase("a"))) is None


def test_targeted_weights_are_the_rest_to_one() -> None:
    """SegPGD's of arXiv 2207.12391 and CosPGD's of arXiv 2302.02213, eq. 6."""
    goal = drawing(["b"], ONE)
    log_odds = torch.tensor([[5.0, 0.0, 0.0]]).log_softmax(1).view(1, 3, 1, 1)
    log_odds = log_odds - torch.log1p(-log_odds.exp())  # log-odds of a softmax
    cosine = 1 / math.sqrt(math.exp(5) ** 2 + 2)  # 0.0067
    loss = -ce(log_odds, goal).item()
    drawn = Drawn(goal).bind(Setting(ONE))
    assert Toward(cosine_ce, drawn)(log_odds, goal).item() == pytest.approx((1 - cosine) * loss)
    assert Toward(progressive_ce, drawn)(log_odds, goal, 0.5).item() == pytest.approx(0.75 * loss)


def test_every_attack_can_be_sent_towards_a_goal() -> None:
    attack = registry.build("pgd(linf(0.05), toward(margin, erase('b')), steps=10)", "attack")
    assert attack == PGD(Linf(0.05), Toward(margin, Erase("b")), steps=10)
    assert registry.build(registry.spec(attack), "attack") == attack
    model = registry.build("oracle", "model")(FREE).double().eval()
    image = 0.5 + 0.2 * (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5)
    truth = model.decide(model(image))
    # the two classes cannot be told apart: where one is to go and one to stay, their slopes cancel
    one = bind(registry.build("fgsm(linf(0.05), toward(margin, erase('b')))", "attack"), Setting(FREE))
    torch.testing.assert_close(one(model, image, truth, [1, 2]).image, torch.where(truth[:, :1], image, image - 0.05))
    erased = registry.build("fgsm(linf(0.05), toward(margin, all_background))", "attack")
    result = bind(erased, Setting(FREE))(model, image, truth, [1, 2])
    torch.testing.assert_close(result.image, image - 0.05)


PRED = torch.tensor([[[1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [0] * 10]], dtype=torch.bool)[:, :, None]
TRUE = torch.tensor([[[1, 0, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 10]], dtype=torch.bool)[:, :, None]


@pytest.mark.parametrize(
    ("criterion", "away", "near"),
    [
        (ByPixels(0.5), 0.0, 1.0),  # b has no wrong entry at all; a agrees on 8 of 10, which is enough
        (ByPixels(0.9), 0.0, 0.8 / 0.9),
        (ByDice(below=0.5, above=0.9), 0.25 / 0.5, 0.75 / 0.9),  # Dice: a 1/2, b in neither 1
        (ByDice(below=0.75), 1.0, 0.75 / 0.9),
        # IoU: a 1/3 and 7/9 without; b 1 and 1
        (ByMiou(below=0.5), (1 - (4 / 3 + 16 / 9) / 4) / 0.5, 1.0),
        (ByMiou(above=0.9), (1 - (4 / 3 + 16 / 9) / 4) / 0.5, (4 / 3 + 16 / 9) / 4 / 0.9),
    ],
)
def test_how_far_an_attack_came(criterion: Criterion, away: float, near: float) -> None:
    assert criterion.away(PRED, TRUE, FREE).item() == pytest.approx(away)
    assert criterion.near(PRED, TRUE, FREE).item() == pytest.approx(near)


def test_a_pixel_of_an_exclusive_task_counts_once() -> None:
    pred, truth = drawing(["aab.bbbbbb"], ONE), drawing(["aaabbbbbb."], ONE)
    assert ByPixels(0.7).near(pred, truth, ONE).item() == 1.0  # 7 of 10 pixels, though 24 of 30 entries agree
    assert ByPixels(0.71).near(pred, truth, ONE).item() < 1.0
    assert ByPixels(0.3).away(pred, truth, ONE).item() == 1.0
    assert ByPixels(0.31).away(pred, truth, ONE).item() < 1.0


@pytest.mark.parametrize("text", ["by_pixels(share=0.0)", "by_dice(below=1.0)", "by_miou(above=1.5)"])
def test_a_rule_that_cannot_be_met_or_always_is_told(text: str) -> None:
    with pytest.raises(InputError, match="not reached from the start"):
        registry.build(text, "criterion")


def test_disjoint_masks_of_5_percent_meet_the_published_target_rule() -> None:
    """Why the clean share stands beside it (attacks on empty predictions would look successful)."""
    pred, goal = torch.zeros(2, 1, 1, 1, 40, dtype=torch.bool)
    pred[..., :2], goal[..., 2:4] = True, True
    organ = Task("organ", ("organ",))
    assert ByMiou().near(pred, goal, organ).item() == 1.0
    assert ByDice().near(pred, goal, organ).item() == 0.0


def test_organs_grow_into_background_alone_on_a_grid_of_any_height() -> None:
    truth = drawing(["a..b", "a..b"], ONE)
    grown = bound(Grow(1.0), ONE, truth)(truth)
    assert torch.equal(grown, drawing(["aabb", "aabb"], ONE))
    between = drawing(["a.b"], ONE)
    assert torch.equal(bound(Grow(1.0), ONE, between)(between), drawing(["aab"], ONE))  # the first organ takes it
    for goal in (Grow, Shrink):
        with pytest.raises(InputError, match="expected a width above 0 mm"):
            goal(0.0)
        assert goal(0.1).mm == 0.1
