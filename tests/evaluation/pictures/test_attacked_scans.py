"""A scan that is put together of batches of its slices, or of a whole one."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseg_attack import registry
from medseg_attack.evaluation.crafting import craft
from medseg_attack.evaluation.pictures.attacked_scans import _Outcome, _outcome, _scan
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.budgets import parse_budget
from medseg_attack.types import Batch, Case, Donors, Stack, Task, Window

WINDOW = Window(-100.0, 300.0, "HU")


def outcome(image: torch.Tensor, masks: torch.Tensor, flow: torch.Tensor | None) -> _Outcome:
    return _Outcome(image + 1, image[:, :1] + 2, flow, masks, ~masks, masks.roll(1, -1))


@pytest.mark.parametrize("is_whole", [False, True])
def test_slices_of_all_batches_stand_in_their_order_and_scored_classes_alone(is_whole: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 1 if is_whole else 5
    grid = (5, 3, 4) if is_whole else (3, 4)
    image = torch.rand(n, 2, *grid, generator=generator)
    masks = torch.rand(n, 3, *grid, generator=generator) > 0.5
    flow = torch.rand(n, len(grid), *grid, generator=generator)
    places = [None] * n if is_whole else [Stack(i + 2, 9, 3.0) for i in range(n)]
    spacing = (3.0, 2.0, 1.5) if is_whole else (2.0, 1.5)
    cases = [Case(f"c{i}", "scan", "p", image[i], masks[i], spacing, WINDOW, place) for i, place in enumerate(places)]
    ends = [(0, 1)] if is_whole else [(0, 2), (2, 5)]

    def stacked(tensor: torch.Tensor) -> np.ndarray:
        """(channels, slices, rows, columns)."""
        return (tensor[0] if is_whole else tensor.transpose(0, 1)).numpy()

    for moved in (flow, None):
        parts = [outcome(image[a:b], masks[a:b], None if moved is None else moved[a:b]) for a, b in ends]
        scan = _scan(cases, parts, [0, 2], is_stored=True, is_colour=False)
        assert (scan.scan, scan.is_stored, scan.is_colour, scan.unit) == ("scan", True, False, "HU")
        assert (scan.width, scan.pixel_mm) == (400.0, (2.0, 1.5))
        assert scan.indices == (tuple(range(5)) if is_whole else (2, 3, 4, 5, 6))
        assert scan.n_slices == (5 if is_whole else 9)
        np.testing.assert_array_equal(scan.clean_channels, stacked(image))
        np.testing.assert_array_equal(scan.attacked_channels, stacked(image + 1))
        np.testing.assert_array_equal(scan.clean, stacked(image)[0])
        np.testing.assert_array_equal(scan.attacked, stacked(image + 1)[0])
        np.testing.assert_array_equal(scan.before, stacked(image)[0] + 2)
        scored = masks[:, [0, 2]]
        for name, expected in {
            "truth": scored,
            "truth_attacked": scored,
            "prediction": ~scored,
            "prediction_attacked": scored.roll(1, -1),
        }.items():
            np.testing.assert_array_equal(getattr(scan, name), stacked(expected))
        if moved is None:
            assert scan.flow is None
        else:
            assert scan.flow is not None
            np.testing.assert_array_equal(scan.flow, stacked(flow)[-2:])  # along rows and columns


def test_an_image_of_no_scan_is_its_first_and_only_slice_and_channels_may_differ_in_their_window() -> None:
    image = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    window = Window((0.0, 0.0), (1.0, 3.0))
    case = Case("c", "c", "p", image, torch.ones(1, 3, 4).bool(), (1.0, 1.0), window)
    parts = [outcome(image[None], torch.ones(1, 1, 3, 4).bool(), None)]
    scan = _scan([case], parts, [0], is_stored=False, is_colour=True)
    assert (scan.indices, scan.n_slices, scan.is_stored, scan.is_colour) == ((0,), 1, False, True)
    assert math.isnan(scan.width)


class OfBoth(torch.nn.Module):
    """The sum of two channels, of which either side of 1 is a class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.sum(1, keepdim=True) - 1
        return torch.cat((total, -total), 1)


def test_an_outcome_has_all_channels_under_attack_and_the_first_one_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for n in range(3):
        image = torch.rand(2, 4, 4, generator=generator)
        window = Window(0.0, 100.0 * (1 + n % 2))  # two budgets, so that the first and the last case go together
        target = torch.stack((image.sum(0) > 1, image.sum(0) <= 1))
        cases.append(Case(f"c{n}", "v", "p", image, target, (1.0, 1.0), window, Stack(n, 3, 1.0)))
    batch, task = Batch.of(cases), Task("toy", ("a", "b"), channels=2)
    attack, budget = registry.build("fgsm(linf(0))", "attack"), parse_budget("20%window")
    donors = Donors(SimpleNamespace(read=None), ())  # type: ignore[arg-type]
    with frozen(SegModel(OfBoth(), task, in_channels=2).eval()) as model:
        result = _outcome(model, batch, attack, budget, donors, {"seed": 0})
    change = torch.where(batch.target[:, :1], -0.2, 0.2)  # one step away from the truth, the same in both channels
    attacked = (batch.image + change).clamp(0, 1)
    torch.testing.assert_close(result.attacked, attacked)
    assert torch.equal(result.before, batch.image[:, :1])
    assert result.flow is None
    assert torch.equal(result.truth_attacked, batch.target)
    for pred, image in ((result.prediction, batch.image), (result.prediction_attacked, attacked)):
        total = image.sum(1) - 1
        assert torch.equal(pred, torch.stack((total >= 0, total <= 0), 1))


def test_of_copies_of_one_channel_under_attack_a_scan_has_the_first() -> None:
    case = Case("c", "v", "p", torch.full((1, 6, 5), 0.5), torch.ones(2, 6, 5).bool(), (1.0, 1.0), WINDOW)
    net = torch.nn.Conv2d(3, 2, 1)
    attack = registry.build("fgsm_wang2024(blend(0.02), channels=3)", "attack")
    donors = Donors(SimpleNamespace(read=None), ())  # type: ignore[arg-type]
    with frozen(SegModel(net, Task("toy", ("a", "b")), in_channels=3).eval()) as model:
        batch = Batch.of([case])
        result = _outcome(model, batch, attack, None, donors, {"seed": 0})
        (crafted,) = craft(model, batch, [attack], [None], 0, donors)
    assert crafted.image.shape[1] == 3
    assert torch.equal(result.attacked, crafted.image[:, :1])
    assert torch.equal(result.before, batch.image)
