"""The aim of an attack: how far each entry is from the decision's boundary, and the columns that tables report."""

import pytest
import torch

from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.threat.goals.aim import Aim
from medseg_attack.threat.goals.criteria import ByDice, ByPixels
from medseg_attack.threat.goals.masks import Erase
from medseg_attack.types import Mask, Task

FREE = Task("free", ("a", "b"))
ONE = Task("one", ("background", "a", "b"), exclusive=True)


def test_of_exclusive_classes_the_excess_is_the_difference_of_logits() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.5, 4.0, 1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    logits = logits.T[None, :, :]  # three pixels
    target = torch.zeros(1, 3, 3, dtype=torch.bool)
    target[0, [0, 0, 2], [0, 1, 2]] = True
    excess = Aim.of(None, ByPixels(), ONE).excess(softmax_log_odds(logits), target)
    torch.testing.assert_close(excess, torch.tensor([[[1.0 - 3.0, 4.0 - 0.5, 0.0 - 2.0]]], dtype=torch.float64))
    erased = Aim.of(Erase("b"), ByPixels(), ONE).excess(softmax_log_odds(logits), target)
    towards = torch.tensor([[[3.0 - 1.0, 0.5 - 4.0, 0.0 - 2.0]]], dtype=torch.float64)  # background in place of b
    torch.testing.assert_close(erased, towards)


def test_of_overlapping_classes_the_excess_is_the_log_odds_on_the_wrong_side() -> None:
    log_odds = torch.tensor([[[2.0, -1.0], [-3.0, 4.0]]])
    target = torch.tensor([[[True, False], [True, True]]])
    assert Aim.of(None, ByPixels(), FREE).excess(log_odds, target).tolist() == [[[-2, -1], [3, -4]]]
    assert Aim.of(Erase("b"), ByPixels(), FREE).excess(log_odds, target).tolist() == [[[2, 1], [3, -4]]]


def mask(task: Task, *rows: str) -> Mask:
    """Cases of one row each, from letters."""
    layers = [[[letter == name for letter in row] for name in ("a", "b")] for row in rows]
    organs = torch.tensor(layers)
    return torch.cat([~organs.any(1, keepdim=True), organs], 1) if task.exclusive else organs


@pytest.mark.parametrize("task", [FREE, ONE], ids=["overlapping", "exclusive"])
def test_the_columns_of_cases_and_classes_are_counted_by_hand(task: Task) -> None:
    truth = mask(task, "aaaabb..", "aa......")
    clean = mask(task, "aaa.bb..", "aa.....a")
    pred = mask(task, "ab..bb..", "........")
    aim = Aim(Aim.of(Erase("a"), ByDice(above=0.9), task).goal, ByDice(above=0.9), task, counts_taken=True)
    first, second = aim.measured(clean, pred, truth)
    (a, b) = first
    assert (a["n_goal"], a["hit_goal"], a["hit_goal_of_clean"]) == (0, 0, 0)
    assert (b["n_goal"], b["hit_goal"], b["hit_goal_of_clean"]) == (2, 2, 2)
    lost = 2 if task.exclusive else 3  # of exclusive classes one pixel turned into b, which is not what was wanted
    assert (a["n_taken"], a["hit_taken"], a["hit_taken_of_clean"]) == (4, lost, 1)
    assert (b["n_taken"], b["hit_taken"]) == (0, 0)
    assert (second[0]["n_taken"], second[0]["hit_taken"], second[0]["hit_taken_of_clean"]) == (2, 2, 0)
    assert (a["success"], second[0]["success"]) == (0.0, 1.0)
    assert (a["success_of_clean"], second[0]["success_of_clean"]) == (0.0, 0.0)
    assert (a["success_on_truth"], second[0]["success_on_truth"]) == (0.0, 1.0)  # mean Dice 0.6 and 0.5
    assert {"success_by_dice", "success_by_pixels", "success_by_miou"} <= set(a)
    without = Aim.of(None, ByDice(), task).measured(clean, pred, truth)
    assert "n_goal" not in without[0][0]
    assert "n_taken" not in without[0][0]
    assert without[1][0]["success"] == 1.0
    assert aim.reached(pred, truth).tolist() == [False, True]


def test_the_excess_of_a_case_does_not_depend_on_its_batch() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.nn.functional.one_hot(logits.roll(1, 0).argmax(1), 3).movedim(-1, 1).bool()
    aim = Aim.of(None, ByPixels(), ONE)
    together = aim.excess(softmax_log_odds(logits), target)
    assert together.shape == (4, 1, 5)
    alone = [aim.excess(softmax_log_odds(logits[n : n + 1]), target[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
