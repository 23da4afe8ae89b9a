"""The worth of a copy: its measures from counts of pixels, and the share of harm that goes over to the victim."""

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import blobs

from medseg_attack.evaluation.extracting import MEASURES, _attacked, _cases, _measured, _summary
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Task


def test_measures_are_means_of_patients_and_transfer_is_a_share_of_the_victims_own_loss() -> None:
    values = {
        "fidelity": (0.9, 0.7),
        "student": (0.8, 0.4),
        "victim": (0.9, 0.7),
        "transferred": (0.5, 0.5),
        "own": (0.5, 0.1),
    }
    cases = pd.DataFrame(
        {"group": ["p", "q"], "unit": ["p", "q"], "cls": ["organ"] * 2} | {name: list(v) for name, v in values.items()}
    )
    result = _summary(cases)
    assert list(values) == list(MEASURES)
    assert result["patients"] == 2
    for name, pair in values.items():
        assert result[name] == pytest.approx(sum(pair) / 2)
        assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]
    assert result["transfer"] == pytest.approx((0.8 - 0.5) / (0.8 - 0.3))
    without = _summary(cases.drop(columns="own"))
    assert all(math.isnan(without[name]) for name in ("own", "own_low", "own_high", "transfer"))
    assert without["transferred"] == pytest.approx(0.5)
    unharmed = _summary(cases.assign(own=cases["victim"]))
    assert math.isnan(unharmed["transfer"])


def test_dice_of_a_patient_are_of_its_pixels_by_scored_class_and_nan_where_there_are_none() -> None:
    task = Task("toy", ("background", "a", "b"), exclusive=True)
    counted = torch.tensor([[9, 9, 9], [4, 6, 3], [0, 0, 0]])
    table = _cases({"p": {"student": counted, "victim": counted.flip(1)}}, SimpleNamespace(task=task))  # type: ignore[arg-type]
    assert table[["group", "unit", "cls"]].to_numpy().tolist() == [["p", "p", "a"], ["p", "p", "b"]]
    assert table["student"].tolist() == pytest.approx([0.6, math.nan], nan_ok=True)
    assert table["victim"].tolist()[0] == pytest.approx(2 * 4 / (3 + 6))


class Threshold(torch.nn.Module):
    """Everything above a value, with a slope that says how to get there."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x - self.value, x - self.value), 1)


@pytest.mark.parametrize("black_box", [False, True])
def test_each_measure_is_of_its_two_masks(black_box: bool) -> None:
    batch = blobs.batch(2)
    student, victim = (SegModel(Threshold(value), blobs.TASK).eval() for value in (0.35, 0.4))
    victim.black_box = black_box
    with frozen(student), frozen(victim):
        measured = _measured(student, victim, batch, 0.02)
        changed: dict[str, Any] = {"transferred": _attacked(student, batch, 0.02)}
        if not black_box:
            changed["own"] = _attacked(victim, batch, 0.02)
    one, other = batch.image > 0.35, batch.image >= 0.4
    truth = batch.target
    pairs = {"fidelity": (one, other), "student": (one, truth), "victim": (other, truth)}
    pairs |= {name: (image >= 0.4, truth) for name, image in changed.items()}
    assert set(measured) == set(pairs)
    for name, (pred, target) in pairs.items():
        pred, target = (mask.expand(2, 2, 32, 32) for mask in (pred, target))
        expected = [mask.flatten(2).sum(2) for mask in (target, pred, target & pred)]
        assert torch.equal(measured[name], torch.stack(expected, 2)), name
    for image in changed.values():
        assert 0.019 < (image - batch.image).abs().max() <= 0.02 + 1e-6
