"""Inversion of triggers on a model with a backdoor that is written down, and on its clean twin."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.command import medattack
from torch import Tensor, nn

from medseg_attack.evaluation.audits.triggers import SUSPICIOUS, anomalies, inverted
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Task

ORGANS = 6
TASK = Task("discs", tuple("abcdef"), channels=ORGANS)
SIDE = 3


class Discs(nn.Module):
    """Each organ is what is bright in its channel; a bright corner takes the first one away."""

    def __init__(self, has_backdoor: bool) -> None:
        super().__init__()
        self.strength = 11.0 if has_backdoor else 0.0

    def forward(self, x: Tensor) -> Tensor:
        alarm = (x[:, :, :SIDE, :SIDE].mean((1, 2, 3)) - 0.15).relu() * self.strength
        weight = torch.tensor([1.0, 0, 0, 0, 0, 0]).view(1, -1, 1, 1)
        return 20 * (x - 0.5) - weight * alarm.view(-1, 1, 1, 1)


def images() -> Tensor:
    """A disc in each channel, in a random place away from the corner, on a dark ground."""
    rng = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    result = torch.full((8, ORGANS, 20, 20), 0.1)
    for image in result.flatten(0, 1):
        row, column = 9 + 6 * torch.rand(2, generator=rng)
        image[torch.hypot(rows - row, columns - column) < 4] = 0.9
    return result


def test_the_pair_of_a_backdoor_is_an_anomaly_and_its_patch_lies_on_the_trigger() -> None:
    with frozen(SegModel(Discs(True), TASK)) as model:
        first, *others = inverted(model, images())
    assert (first.victim, first.wanted) == ("a", "")
    assert first.index > SUSPICIOUS
    assert first.size < first.area
    assert all(other.index < SUSPICIOUS for other in others)
    trigger = torch.zeros(20, 20, dtype=torch.bool)
    trigger[:SIDE, :SIDE] = True
    patch = first.opacity > 0.5
    assert (patch & trigger).sum() / (patch | trigger).sum() > 0.5


def test_no_pair_of_a_clean_model_is_an_anomaly() -> None:
    with frozen(SegModel(Discs(False), TASK)) as model:
        pairs = inverted(model, images())
    assert len(pairs) == len(TASK.classes)
    assert all(pair.index < SUSPICIOUS for pair in pairs)


def test_a_patch_that_turns_a_class_into_another_is_sought_for_each_pair_of_exclusive_classes() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x[:, :1]
            return torch.cat((0 * x, 20 * (x - 0.4), 20 * (x - 0.4) + 40 * (x - 0.7)), 1)

    task = Task("two", ("background", "dim", "bright"), exclusive=True)
    with frozen(SegModel(Two(), task, head="softmax")) as model:
        image = images()
        image[4:] *= 0.6
        pairs = inverted(model, image[:, :1], steps=20)
    assert {(pair.victim, pair.wanted) for pair in pairs} == {
        (victim, wanted) for victim in ("dim", "bright") for wanted in task.classes if wanted != victim
    }


def test_sizes_that_are_none_and_too_few_have_no_index() -> None:
    assert all(map(math.isnan, anomalies([1.0, 2.0])))
    assert math.isnan(anomalies([1.0, 2.0, math.nan, 5.0])[2])
    assert all(map(math.isnan, anomalies([3.0, 3.0, 3.0])))


def test_the_command_lists_pairs_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg_attack.evaluation.audits.triggers.STEPS", 3)
    phantom = "phantom(patients=6, slices=2, side=32)"
    medattack("prepare", tmp_path / "scans", "--format", phantom, "--out", tmp_path / "data")
    words = ["audit", tmp_path / "data", "--by", "inversion", "--model"]
    content = json.loads(medattack(*words, "oracle", "--json").stdout)
    assert content["by"] == "inversion"
    assert {pair["victim"] for pair in content["pairs"]} == {"large_bowel", "small_bowel", "stomach"}
    assert "least patch" in " ".join(medattack(*words, "oracle").stdout.split())
