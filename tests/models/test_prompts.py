"""Prompts that are drawn from the truth, and what a promptable network is: one of images alone, once they are drawn."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import blobs
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.certificates.smoothing.base import noisy_masks
from medseg_attack.errors import InputError
from medseg_attack.evaluation.crafting import craft
from medseg_attack.evaluation.knowledge import adaptive_to
from medseg_attack.library.models import wrap
from medseg_attack.models.prompts import ABSENT, Boxes, Points
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Batch, Setting, Task

H, W = 20, 30
TRUTH = torch.zeros(3, H, W, dtype=torch.bool)
TRUTH[0, 4:9, 10:25] = True  # the second organ is not there
TRUTH[2, 0, 0] = True


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_box_without_a_margin_has_the_first_and_the_last_pixels() -> None:
    boxes = Boxes(0).drawn(TRUTH, rng())
    assert boxes[[0, 2]].tolist() == [[[10, 4], [24, 8]], [[0, 0], [0, 0]]]
    assert boxes[1].isnan().all()


def test_each_side_of_a_box_moves_out_by_a_uniform_length() -> None:
    """An organ in the middle of a large slice, so that no side is cut off."""
    truth = torch.zeros(1, 101, 101, dtype=torch.bool)
    truth[0, 40:61, 30:71] = True
    generator = rng()
    moved = torch.stack([Boxes(10).drawn(truth, generator)[0] for _ in range(4000)]).flatten(1)
    outwards = (moved - torch.tensor([30.0, 40.0, 70.0, 60.0])) * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert outwards.min() >= 0
    assert outwards.max() <= 10
    deviation = 10 / math.sqrt(12 * len(outwards))  # of a mean of uniform numbers
    assert ((outwards.mean(0) - 5).abs() < 4 * deviation).all()
    off_diagonal = torch.corrcoef(outwards.T) - torch.eye(4)
    assert off_diagonal.abs().max() < 4 / math.sqrt(len(outwards))  # sides are independent


def test_a_box_is_held_to_the_slice() -> None:
    (x0, y0), (x1, y1) = Boxes(1000).drawn(torch.ones(1, H, W, dtype=torch.bool), rng())[0].tolist()
    assert (x0, y0, x1, y1) == (0, 0, W - 1, H - 1)


def test_points_are_pixels_of_the_organ_each_as_likely() -> None:
    truth = torch.zeros(2, 3, 4, dtype=torch.bool)
    truth[0, 1, 2:4] = truth[0, 2, 0] = True
    generator = rng()
    drawn = torch.stack([Points(3).drawn(truth, generator) for _ in range(3000)])
    assert drawn[:, 1].isnan().all()
    points = drawn[:, 0]
    number = (~points.isnan().any(-1)).sum(1)
    assert (number >= 1).all()
    assert ((number.bincount(minlength=4)[1:] / 3000 - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / 3000)).all()
    known = points[~points.isnan().any(-1)].long()
    pixels, counts = known.unique(dim=0, return_counts=True)
    assert pixels.tolist() == [[0, 2], [2, 1], [3, 1]]  # columns, rows
    assert ((counts / len(known) - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / len(known))).all()


def test_a_network_gets_no_nan() -> None:
    (boxes,) = Boxes(0).inputs(Boxes(0).drawn(TRUTH, rng())[None], (H, W))
    assert boxes.tolist() == [[[10, 4, 24, 8], [0, 0, W - 1, H - 1], [0, 0, 0, 0]]]
    points, labels = Points(2).inputs(Points(2).drawn(TRUTH, rng())[None], (H, W))
    assert points.shape == (1, 3, 2, 2)
    assert not points.isnan().any()
    assert labels[0, 1].tolist() == [-1, -1]
    assert labels[0, :, 0].tolist() == [1, -1, 1]


class InBox(nn.Module):
    """A logit that rises with the image, and is lower outside the box of the organ."""

    def __init__(self, gain: float = 30.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.boxes: list[Tensor] = []

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        self.boxes.append(boxes)
        rows = torch.arange(images.shape[2]).to(images).view(1, 1, -1, 1)
        columns = torch.arange(images.shape[3]).to(images).view(1, 1, 1, -1)
        x0, y0, x1, y1 = (side[..., None, None] for side in boxes.unbind(-1))
        inside = (columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)
        return self.gain * (images - 0.4) - 5 * ~inside


class WithoutPrompt(nn.Module):
    """The same network with the boxes of some cases in it."""

    def __init__(self, net: InBox, boxes: Tensor) -> None:
        super().__init__()
        self.net, self.boxes = net, boxes

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.net(images, self.boxes.to(images))
        return answer


def model(task: Task = blobs.TASK, **options: Any) -> SegModel:
    options = {"prompt": "box", "margin": 0.0} | options
    return wrap(InBox().eval(), task.classes, task.exclusive, **options)


def answer(of: SegModel, batch: Batch, **options: Any) -> Tensor:
    with torch.no_grad():
        return bind(of, Setting(of.task, batch.cases, **options))(batch.image)


@pytest.mark.parametrize("text", ["pgd(steps=4)", "averaged(pgd(steps=4))", "apgd(steps=4)", "square(queries=20)"])
def test_one_fixed_prompt_is_the_ordinary_attack_bit_for_bit(text: str) -> None:
    batch = blobs.batch(3)
    promptable = model()
    boxes = torch.stack([Boxes(0).drawn(case.target, rng()) for case in batch.cases]).flatten(2)
    plain = SegModel(WithoutPrompt(InBox().eval(), boxes), blobs.TASK).eval()
    assert adaptive_to(promptable, registry.build("pgd", "attack")) == registry.build("pgd", "attack")
    attack: Attack = registry.build(text, "attack")
    one, other = (next(iter(craft(each, batch, [attack], [None], seed=1))) for each in (promptable, plain))
    assert not torch.equal(one.image, batch.image)
    assert torch.equal(one.image, other.image)
    assert one.cost == other.cost


def test_an_attack_averages_over_prompts_that_are_drawn_for_it() -> None:
    """Each pass has prompts of its own; what is scored are those of the untouched image."""
    batch, promptable = blobs.batch(2), model(margin=10.0)
    attack = adaptive_to(promptable, registry.build("pgd(steps=2)", "attack"))
    assert registry.spec(attack).startswith("averaged(attack=pgd(")
    seen: list[Tensor] = promptable.net.net.net.boxes
    next(iter(craft(promptable, batch, [attack], [None], seed=1)))
    drawn = torch.stack(seen)
    assert len(drawn) % attack.passes == 0  # type: ignore[attr-defined]
    assert len(drawn.flatten(1).unique(dim=0)) == len(drawn)
    assert torch.equal(answer(promptable, batch), answer(promptable, batch))
    assert not torch.equal(answer(promptable, batch), answer(promptable, batch, stream="attack 1"))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_each_draw_of_noise_has_prompts_of_its_own_whatever_the_batch(batch_size: int) -> None:
    """A bound counts draws as independent ones; next to no noise, so that they differ by their prompts alone."""
    batch, sizes = blobs.batch(3), {}
    for size in (batch_size, 3):
        promptable = model(margin=10.0)
        sizes[size] = torch.stack([*noisy_masks(promptable, batch, 1e-9, 8, 1, "bound", size)])
        seen = torch.cat(promptable.net.net.net.boxes)
        assert len(seen) == 8 * 3
        assert len(seen.flatten(1).unique(dim=0)) == 8 * 3
    assert torch.equal(sizes[batch_size], sizes[3])
    assert not torch.equal(sizes[3][0], sizes[3][1])
    list(noisy_masks(promptable, batch, 1e-9, 1, 1, "choice", 3))
    assert len(torch.cat(promptable.net.net.net.boxes).flatten(1).unique(dim=0)) == 9 * 3


def test_prompts_are_of_the_case_and_not_of_its_batch() -> None:
    batch, promptable = blobs.batch(3), model(margin=10.0)
    together = answer(promptable, batch)
    for n, case in enumerate(batch.cases):
        assert torch.equal(answer(promptable, Batch.of([case])), together[n : n + 1])


def test_a_resized_image_has_its_boxes_resized_about_centres_of_pixels() -> None:
    """Twice as many rows and three times as many columns: pixel i covers 2i and 2i + 1, whose centre is 2i + 1/2."""
    batch = blobs.batch(1)
    own, larger = model(), model(size=(2 * blobs.SIDE, 3 * blobs.SIDE))
    answer(own, batch)
    answer(larger, batch)
    ((box,),), ((resized,),) = (each.net.net.net.boxes[0][:, :1].tolist() for each in (own, larger))
    assert resized == pytest.approx([3 * box[0] + 1, 2 * box[1] + 0.5, 3 * box[2] + 1, 2 * box[3] + 0.5])


def test_an_organ_that_is_not_there_has_no_prompt_and_no_answer() -> None:
    (case,) = blobs.batch(1).cases
    target = case.target.clone()
    target[1] = False
    batch = Batch.of([replace(case, target=target)])
    log_odds = answer(model(), batch)
    assert (log_odds[:, 1] == ABSENT).all()
    assert torch.equal(log_odds[:, 0], answer(model(), Batch.of([case]))[:, 0])
    x = batch.image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(bind(model(), Setting(blobs.TASK, batch.cases))(x)[:, 1].sum(), x)
    assert (grad == 0).all()  # it has a gradient, which leads nowhere


def test_organs_that_exclude_each_other_stand_against_a_background_of_0() -> None:
    """Where both organs are bright the more certain wins; where neither is above 0 the background does."""
    task = Task("blobs", ("background", *blobs.TASK.classes), exclusive=True)
    (case,) = blobs.batch(1).cases
    background = ~case.target.any(0, keepdim=True)
    batch = Batch.of([replace(case, target=torch.cat((background, case.target)))])
    decided = model(task).decide(answer(model(task), batch))
    organs = answer(model(), Batch.of([case])) >= 0
    assert torch.equal(decided[:, 0], ~organs.any(1))
    assert torch.equal(decided[:, 1:].any(1), organs.any(1))
    assert (decided.sum(1) == 1).all()


def test_images_without_their_cases_are_refused() -> None:
    batch = blobs.batch(2)
    with pytest.raises(InputError, match=r"expected a case with its truth for each image, .* got images alone"):
        model()(batch.image)
    with pytest.raises(InputError, match="got 1 images of 2 cases; take a model without prompts here"):
        bind(model(), Setting(blobs.TASK, batch.cases))(batch.image[:1])
