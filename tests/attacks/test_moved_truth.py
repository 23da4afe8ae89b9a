"""The loop where anatomy moves: predictions are scored against the truth that moved along, and flows are checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.judging import judge
from medseg_attack.attacks.physical.deformation import Displacement
from medseg_attack.errors import InputError
from medseg_attack.evaluation.loop import attack_chunk
from medseg_attack.metrics.surface import hd95_mm
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.flows import warped
from medseg_attack.stats.clinical import deltas
from medseg_attack.stats.scores import pooled, scored
from medseg_attack.types import Adversarial, Ball, Batch, Case, Image, Mask, Model, Stack, Storage, Task, Window

TASK = Task("toy", ("organ",))
MM = Displacement(3.0)


@dataclass(frozen=True)
class Shift:
    """Everything by whole pixels; `more` is added to the image, `less` to the flow that is confessed."""

    pixels: tuple[float, float]
    ball: Ball = MM
    more: float = 0.0
    less: float = 0.0

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        flow = torch.tensor(self.pixels).view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:]).to(image)
        judged = judge(model, self.ball, warped(image, flow) + self.more, image, target)
        return replace(judged, flow=flow - self.less)


def case(number: int, dtype: type | None = None, spacing: tuple[float, float] = (1.0, 1.0)) -> Case:
    """A bright square of 16 pixels, its last two columns at the border."""
    stored = np.full((1, 12, 10), 20 + number)
    stored[0, 4:8, 6:10] = 180
    storage = None if dtype is None else Storage(torch.from_numpy(stored.astype(dtype)))
    image = torch.from_numpy((stored / 250).astype(np.float32))
    return Case(f"c{number}", "v", "g", image, image > 0.5, spacing, Window(0, 250), Stack(number, 2, 3.0), storage)


@pytest.fixture
def model() -> SegModel:
    oracle: SegModel = registry.build("oracle", "model")(TASK)
    return oracle


@pytest.mark.parametrize("dtype", [None, np.int16, np.uint8, np.float32])
def test_a_model_that_follows_the_anatomy_loses_nothing(model: SegModel, dtype: type | None) -> None:
    """Two columns to the right, half of the organ leaves the image: 8 of 16 pixels are left of truth and prediction."""
    batch = Batch.of([case(n, dtype) for n in range(2)])
    with frozen(model):
        (result,) = attack_chunk(model, [batch], [Shift((0.0, -2.0))], metrics={"hd95_mm": hd95_mm})
    for row in result.rows:
        assert (row.n_target, row.n_clean, row.hit_clean) == (16, 16, 16)
        assert (row.n_target_adv, row.n_adv, row.hit_adv) == (8, 8, 8)
        assert row.size == pytest.approx(2.0)
        assert row.linf == 0.0  # beside the movement
        assert np.isnan(row.budget)
        expected = {"hd95_mm_clean": 0.0, "hd95_mm_adv": 0.0, "diagonal_mm": pytest.approx(280**0.5)}
        assert {name: row.extra[name] for name in expected} == expected
    rows = pd.DataFrame([vars(row) | row.extra for row in result.rows]).drop(columns="extra").assign(run="r")
    (score,) = scored(pooled(rows, "volume"), "one").to_dict("records")
    assert (score["dice_clean"], score["dice_adv"]) == (1.0, 1.0)
    (delta,) = deltas(rows, empty="one").to_dict("records")
    assert delta["volume_ml"] == 0  # it is the organ that shrank, not the model that erred
    assert delta["centroid_shift_mm"] == pytest.approx(1.0)  # from columns 6-9 to columns 8-9


def test_a_model_that_does_not_follow_is_scored_against_where_the_organ_went(model: SegModel) -> None:
    class Stays(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * (torch.stack([case(n).image for n in range(2)]) - 0.5)

    with frozen(SegModel(Stays(), TASK)) as stays:
        (result,) = attack_chunk(stays, [Batch.of([case(n) for n in range(2)])], [Shift((-3.0, 0.0))])
    for row in result.rows:
        assert (row.n_target_adv, row.n_adv, row.hit_adv) == (16, 16, 4)  # rows 4-7 against rows 7-10


@pytest.mark.parametrize("dtype", [None, np.int16])
@pytest.mark.parametrize(
    "attack",
    [
        Shift((0.0, 4.0)),  # too far
        Shift((0.0, 2.0), less=0.5),  # another flow than the one that made the image
        Shift((0.0, 2.0), more=0.02),  # something on top
        Shift((0.0, 2.0), registry.build("linf(0.9)", "ball")),  # where nothing may move
    ],
    ids=["far", "other", "more", "linf"],
)
def test_the_loop_trusts_no_flow(model: SegModel, attack: Shift, dtype: type | None) -> None:
    """Where values are stored, the file is made from the flow itself, so that it cannot be another's."""
    batch = Batch.of([case(n, dtype) for n in range(2)])
    honest = dtype is not None and (attack.less or attack.more)
    with frozen(model):
        if honest:
            (result,) = attack_chunk(model, [batch], [attack])
            assert result.rows[0].size == pytest.approx(math.hypot(attack.less, 2 - attack.less))
            return
        with pytest.raises(InputError, match="expected changes of size"):
            attack_chunk(model, [batch], [attack])


def test_a_limit_in_mm_is_one_of_the_case_s_own_spacing(model: SegModel) -> None:
    batch = Batch.of([case(n, spacing=(1.0, 2.0)) for n in range(2)])
    with frozen(model), pytest.raises(InputError, match=r"size 3 at most.*got \[4\.0, 4\.0\]"):
        attack_chunk(model, [batch], [Shift((0.0, 2.0))])


@pytest.mark.parametrize("text", ["deformation(steps=0)", "affine(steps=0)", "deformation_bias(steps=0)"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_moved_scans_can_be_stored_inside_the_window_and_beyond_it(text: str, dtype: type) -> None:
    """Rounding does not leave the ball, and what is cut off by the window moves as well."""
    model = registry.build("blurred_oracle", "model")(TASK)
    rng = np.random.default_rng(0)
    cases = []
    for n in range(2):
        stored = rng.integers(0, 250, (1, 12, 10)).astype(dtype)
        image = torch.from_numpy(((stored.astype(np.float64) - 20) / 180).clip(0, 1).astype(np.float32))
        cases.append(replace(case(n), image=image, window=Window(20, 200), storage=Storage(torch.from_numpy(stored))))
    with frozen(model):
        (result,) = attack_chunk(model, [Batch.of(cases)], [registry.build(text, "attack")], keep_images=True)
    for scan, image in zip(cases, result.images, strict=True):
        assert scan.storage is not None
        assert image.dtype == scan.storage.stored.dtype
        beyond = (scan.storage.stored < 20) | (scan.storage.stored > 200)
        assert (image != scan.storage.stored)[beyond].float().mean() > 0.5
