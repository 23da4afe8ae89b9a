"""Inversion of triggers on a model with a backdoor that is written down, and on its clean twin."""

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.command import medattack
from torch import Tensor, nn

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.audits import triggers as module
from medseg_attack.evaluation.audits.triggers import SUSPICIOUS, Inverted, _batch, anomalies, inverted
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Case, CaseRef, Task, Window

CPU = torch.device("cpu")
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


class Two(nn.Module):
    """Background, what is dim, and what is bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((0 * x, 20 * (x - 0.4), 20 * (x - 0.4) + 40 * (x - 0.7)), 1)


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
    task = Task("two", ("background", "dim", "bright"), exclusive=True)
    with frozen(SegModel(Two(), task, head="softmax")) as model:
        image = images()
        image[4:] *= 0.6
        pairs = inverted(model, image[:, :1], steps=20)
    assert {(pair.victim, pair.wanted) for pair in pairs} == {
        (victim, wanted) for victim in ("dim", "bright") for wanted in task.classes if wanted != victim
    }


def as_published(model: SegModel, image: Tensor, victim: int, other: int, steps: int) -> tuple[float, Tensor]:
    """Size and opacity of the least patch: Adam on cross-entropy and price, which moves after five steps in a row."""
    pred = model.decide(model(image)).double()
    taken = pred[:, victim : victim + 1]
    goal = pred.clone()
    goal[:, victim] = 0
    if other >= 0:
        goal[:, other] = torch.maximum(goal[:, other], taken[:, 0])
    mask = torch.zeros(image.shape[2:], dtype=torch.double, requires_grad=True)
    paint = torch.zeros(image.shape[1:], dtype=torch.double, requires_grad=True)
    adam = torch.optim.Adam([mask, paint], lr=0.1, betas=(0.5, 0.9))
    price, outcomes, best = 0.0, [], (math.nan, torch.zeros_like(mask))
    for _ in range(steps):
        opacity = torch.sigmoid(mask)
        z = model(image + opacity * (torch.sigmoid(paint) - image))
        after = model.decide(z.detach())
        hit = (after[:, other] if other >= 0 else ~after[:, victim]).double()
        success = bool((hit * taken[:, 0]).sum() / taken.sum() >= 0.9)
        if success and (math.isnan(best[0]) or opacity.sum() < best[0]):
            best = opacity.sum().item(), opacity.detach().clone()
        outcomes.append(success)
        if len(outcomes) == 5 and len(set(outcomes)) == 1:
            price = (1.5 * price if price else 0.01) if success else price / 1.5**1.5
            outcomes = []
        elif len(outcomes) > 1 and outcomes[-2] != success:
            outcomes = [success]
        entropy = -(goal * torch.sigmoid(z).log() + (1 - goal) * torch.sigmoid(-z).log()).sum(1, keepdim=True)
        loss = (entropy * taken).sum() / taken.sum() + (entropy * (1 - taken)).sum() / (1 - taken).sum()
        adam.zero_grad()
        (loss + price * opacity.sum()).backward()
        adam.step()
    return best


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_patch_is_that_of_the_algorithm_as_it_is_written(exclusive: bool) -> None:
    names = ("background", "dim", "bright") if exclusive else TASK.classes
    task = Task("three", names, exclusive=True) if exclusive else TASK
    net, head = (Two(), "softmax") if exclusive else (Discs(True), "sigmoid")
    image = images().double()[:3]
    image[2] *= 0.6
    image = image[:, :1] if exclusive else image
    with frozen(SegModel(net, task, head=head)) as model:
        pairs = inverted(model, image, steps=60)
        assert {pair.victim for pair in pairs} == set(names[1:] if exclusive else names)
        sizes = [pair.size for pair in pairs]
        assert not all(map(math.isnan, sizes))
        for pair in pairs:
            victim, other = names.index(pair.victim), names.index(pair.wanted) if pair.wanted else -1
            size, opacity = as_published(model, image, victim, other, 60)
            assert pair.size == pytest.approx(size, rel=1e-5, nan_ok=True)
            torch.testing.assert_close(pair.opacity.double(), opacity, rtol=1e-4, atol=1e-5)
            drawn = model.decide(model(image))[:, victim]
            assert pair.area == pytest.approx(int(drawn.sum()) / len(image))
        indices = anomalies(sizes)
        assert [pair.index for pair in pairs] == pytest.approx(indices, nan_ok=True)
        ranks = [
            (-index if index == index else math.inf, size if size == size else 1e9)
            for index, size in zip(indices, sizes, strict=True)
        ]
        assert ranks == sorted(ranks)


def test_a_size_is_unlike_others_by_deviations_from_their_median_and_nothing_above_it_is() -> None:
    """Of 2, 4, 7, 8 and 20 the median is 7, and that of the distances 5, 3, 0, 1 and 13 is 3."""
    expected = [5 / (1.4826 * 3), 3 / (1.4826 * 3), 0.0, 0.0, math.nan, 0.0]
    assert anomalies([2.0, 4.0, 7.0, 8.0, math.nan, 20.0]) == pytest.approx(expected, nan_ok=True)
    for unit in (1.0, 0.1):
        assert anomalies([unit, 2 * unit, 3 * unit]) == pytest.approx([1 / 1.4826, 0.0, 0.0])
    assert SUSPICIOUS == 2  # deviations, as in the paper


def test_slices_are_spread_evenly_over_all() -> None:
    read: list[str] = []

    class Data:
        def read(self, ref: CaseRef) -> Case:
            read.append(ref.id)
            return Case(ref.id, "v", "p", torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).bool(), (1.0, 1.0), Window(0, 1))

    refs = [CaseRef(str(n), "v", "p", (2, 2)) for n in range(46)]
    assert len(_batch(Data(), refs, CPU)) == 16  # type: ignore[arg-type]
    assert read == [str(3 * n) for n in range(16)]
    read.clear()
    _batch(Data(), refs[:3], CPU)  # type: ignore[arg-type]
    assert read == ["0", "1", "2"]


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


class Scripted:
    """An optimiser that moves nothing, and notes the price of a pixel: the mask's gradient, as its slope is 1/4."""

    def __init__(self, parameters: list[Tensor], lr: float, betas: tuple[float, float]) -> None:
        self.mask, self.prices, self.options = parameters[0], list[float](), (lr, betas)
        OPTIMISERS.append(self)

    def zero_grad(self) -> None:
        self.mask.grad = None

    def step(self) -> None:
        assert self.mask.grad is not None
        self.prices.append(4 * float(self.mask.grad[0, 0]))


OPTIMISERS: list[Scripted] = []


def test_the_price_rises_after_five_successes_in_a_row_and_falls_faster_after_five_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = "SSSSS SSSSS SFFFFF FSSF FFFF FFFFF".replace(" ", "")
    shares = iter([{"S": 0.9, "F": 0.89}[each] for each in outcomes])
    monkeypatch.setattr(module, "_share", lambda *_: next(shares))
    answers: list[Tensor] = []
    monkeypatch.setattr(module, "_loss", lambda log_odds, *_: (answers.append(log_odds), 0 * log_odds.sum())[1])
    monkeypatch.setattr(torch.optim, "Adam", Scripted)
    with frozen(SegModel(Discs(False), TASK)) as model:
        image = images()[:1]
        least = module._least(model, image, model.decide(model(image)), 0, -1, len(outcomes))
        torch.testing.assert_close(answers[0], model((image + 0.5) / 2))  # half of it is a grey pattern
    optimiser = OPTIMISERS[-1]
    assert optimiser.options == (0.1, (0.5, 0.9))
    fall = 1.5**1.5
    expected = [0.0] * 4 + [0.01] * 5 + [0.015] * 6 + [0.015 / fall] * 8 + [0.015 / fall**2] * 5 + [0.015 / fall**3]
    assert optimiser.prices == pytest.approx(expected, abs=1e-7)
    assert (least.victim, least.wanted) == ("a", "")
    assert least.size == 0.5 * 20 * 20
    assert (least.opacity == 0.5).all()


class Moved(Scripted):
    """An optimiser that makes the patch of one opacity after the other."""

    opacities = iter(())

    def step(self) -> None:
        self.mask.data.fill_(torch.logit(torch.tensor(next(Moved.opacities))))


def test_the_patch_is_the_least_of_those_that_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.0, 1.0, 1.0, 0.9, 0.5])
    Moved.opacities = iter([0.4, 0.2, 0.3, 0.1, 0.5])
    monkeypatch.setattr(module, "_share", lambda *_: next(shares))
    monkeypatch.setattr(torch.optim, "Adam", Moved)
    task = Task("two", ("background", "dim", "bright"), exclusive=True)
    with frozen(SegModel(Two(), task, head="softmax")) as model:
        image = images()[:2, :1]
        pred = model.decide(model(image))
        least = module._least(model, image, pred, 2, 0, 5)
    assert (least.victim, least.wanted) == ("bright", "background")
    assert least.size == pytest.approx(0.2 * 20 * 20)  # of the third; that of 0.1 did not succeed
    torch.testing.assert_close(least.opacity, torch.full((20, 20), 0.2))
    assert least.area == int(pred[:, 2].sum()) / 2


def test_pairs_are_sorted_by_index_then_size_and_those_without_are_last(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([math.nan, 100.0, 10.0, 90.0, math.nan, 110.0])

    def least(model: SegModel, image: Tensor, pred: Tensor, victim: int, other: int, steps: int) -> Inverted:
        return Inverted(TASK.classes[victim], "", next(sizes), 1.0, torch.zeros(1))

    monkeypatch.setattr(module, "_least", least)
    with frozen(SegModel(Discs(False), TASK)) as model:
        assert [pair.victim for pair in inverted(model, images())] == ["c", "d", "b", "f", "a", "e"]
        sizes = iter([math.nan, 5.0])
        two = images()[:, :, :, :]
        two[:, 2:] = 0.1
        assert [pair.victim for pair in inverted(model, two)] == ["b", "a"]  # too few for an index
        with pytest.raises(InputError, match="expected a model that draws an organ"):
            inverted(model, 0 * two)


@pytest.mark.parametrize(
    ("fold", "folds", "split"), [(1, 3, ("val", 1, 2)), (3, 3, ("test", 0, 2)), (None, 3, ("val", 0, 2))]
)
def test_slices_are_of_the_shape_of_most_of_those_that_the_model_was_validated_on(
    monkeypatch: pytest.MonkeyPatch, fold: int | None, folds: int, split: tuple[Any, ...]
) -> None:
    refs = [CaseRef(str(n), "v", "p", (3, 4) if n % 3 else (9, 9)) for n in range(9)]
    monkeypatch.setattr(module, "_batch", lambda data, refs, device: refs)
    monkeypatch.setattr(module, "inverted", lambda model, refs, steps: (steps, [ref.id for ref in refs]))
    card = {} if fold is None else {"training": {"fold": fold}}
    model_ref = Mock(ModelRef, dims=2, black_box=False, card=card, label="m")
    model_ref.load.return_value = SegModel(Two(), Task("two", ("background", "a", "b"), exclusive=True))
    data = Mock(
        Prepared, folds=folds, refs=lambda *words: tuple(refs) if words == split else (), root="data", task=TASK
    )
    assert module.triggers(model_ref, data, CPU) == (300, ["1", "2", "4", "5", "7", "8"])
    data.refs = lambda *_: ()
    with pytest.raises(InputError, match="expected validation or test patients in data"):
        module.triggers(model_ref, data, CPU)
    for facts in ({"dims": 3}, {"black_box": True}):
        with pytest.raises(InputError, match="expected a model of slices with a gradient, got m"):
            module.triggers(Mock(ModelRef, **{"dims": 2, "black_box": False, "label": "m"} | facts), data, CPU)


def test_a_share_is_of_the_victims_pixels_that_are_the_other_class_or_no_more_the_victim() -> None:
    """Three pixels of the victim: one stays, one is the other class as well, one is nothing."""
    task = Task("two", ("a", "b"))
    taken = torch.tensor([[[True, True, True, False]]])
    log_odds = torch.tensor([[[[1.0, -1, -1, -1]], [[-1.0, 1, -1, 1]]]])
    model = SegModel(Two(), task)
    assert module._share(model, log_odds, taken, 0, 1) == pytest.approx(1 / 3)
    assert module._share(model, log_odds, taken, 0, -1) == pytest.approx(2 / 3)


def test_few_pixels_weigh_as_much_as_many_in_the_loss() -> None:
    log_odds = torch.zeros(1, 2, 1, 4)
    log_odds[0, 0, 0, 0] = math.log(3)  # probability 3/4, where the goal has nothing
    goal = torch.zeros(1, 2, 1, 4).bool()
    taken = torch.tensor([[[True, False, False, False]]])
    assert float(module._loss(log_odds, goal, taken)) == pytest.approx(3 * math.log(2) + 2 * math.log(2))
