"""A monitor and a stolen copy on numbers by hand: whose suspicion sets the limit, and whose pixels are added up."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import blobs
from torch import Tensor

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.detectors.density.mgm import MGM
from medseg_attack.errors import InputError
from medseg_attack.evaluation import extracting, monitoring
from medseg_attack.models.checkpoints import build_model
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, CaseRef

CPU = torch.device("cpu")
MODEL = SegModel(torch.nn.Conv2d(1, 2, 1), blobs.TASK).eval()


def refs_of(values: Sequence[float], name: str) -> tuple[CaseRef, ...]:
    return tuple(CaseRef(f"{name}_{n}={value}", f"{name}_{n}", f"{name}_{n}", (4, 4)) for n, value in enumerate(values))


def watched(monkeypatch: pytest.MonkeyPatch, asked: Sequence[float], **parts: Sequence[float]) -> monitoring.Watch:
    """The outcome where each case has one feature, the number at the end of its name."""

    def features(victim: Any, source: Any, refs: Sequence[CaseRef], device: Any) -> Tensor:
        return torch.tensor([[float(ref.id.rpartition("=")[2])] for ref in refs])

    monkeypatch.setattr(monitoring, "_features", features)
    own = Mock(
        Prepared, refs=lambda part, fold, dims: refs_of(parts[part], part) if (fold, dims) == (1, 2) else (), root="own"
    )
    return monitoring.watch(MODEL, own, own, refs_of(asked, "query"), 1, CPU)


@pytest.mark.parametrize(
    ("asked", "unseen", "alarm", "false_alarms", "cover"),
    [
        ([3.0] * 10, [1.0, 1.0], 10, 0.0, 3),  # k of 9 and 10 - k of 1 are below 10 times 4 for k <= 3
        ([3.0] * 60, [1.0, 1.0], 25, 0.0, 2),  # as 8 k + 25 <= 100 for k <= 9
        ([1.9] * 10, [2.1, 2.2], 0, 1.0, 0),
        ([2.0] * 10, [2.0, 2.0], 0, 0.0, 0),  # at the limit
        ([3.0] * 10, [3.0, 3.0], 10, 1.0, None),
    ],
)
def test_an_alarm_is_above_the_streams_of_validation_patients(
    monkeypatch: pytest.MonkeyPatch,
    asked: list[float],
    unseen: list[float],
    alarm: int,
    false_alarms: float,
    cover: int | None,
) -> None:
    """Features of training patients are 1 and -1, so that suspicion is a square; those of validation patients are 2."""
    outcome = watched(monkeypatch, asked, train=[1.0, -1.0] * 50, val=[2.0, 2.0, -2.0], test=unseen)
    assert outcome == monitoring.Watch(min(25, len(asked)), alarm, false_alarms, cover)


def test_one_stream_in_twenty_raises_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query, and a hundred patients whose suspicion is all different: the limit is about that of the 95th."""
    values = [float(n) for n in range(1, 101)]
    outcome = watched(monkeypatch, [99.0], train=[1.0, -1.0] * 50, val=values, test=values)
    assert 0.03 < outcome.false_alarms < 0.075
    assert (outcome.window, outcome.alarm) == (1, 1)
    quiet = watched(monkeypatch, [90.0], train=[1.0, -1.0] * 50, val=values, test=values)
    assert quiet.alarm == 0
    assert len(monitoring.peaks({"p": np.ones(3)}, 2, 2, np.random.default_rng(0))) == 1000
    with pytest.raises(InputError, match="got no test patients"):
        watched(monkeypatch, [1.0], train=values, val=values, test=[])


def test_a_stream_has_whole_patients_in_order_and_as_many_queries_as_the_thief_asks() -> None:
    """Slices of the one patient are 0, 0, 9, so that two in a row have at most 4.5, and only from the third on."""
    rng = np.random.default_rng(0)
    slices = {"p": np.array([0.0, 0.0, 9.0])}
    assert set(monitoring.peaks(slices, 3, 2, rng)) == {4.5}
    assert set(monitoring.peaks(slices, 2, 2, rng)) == {0.0}
    assert set(monitoring.peaks(slices, 7, 3, rng)) == {3.0}


def test_features_are_those_of_each_case_by_itself_in_the_order_of_the_queries() -> None:
    victim = build_model("unet_small(channels=(4, 8))", blobs.TASK, seed=0).eval()
    cases = {f"c{n}": replace(blobs.case(n), id=f"c{n}") for n in range(3)}
    source = Mock(Prepared, read=lambda ref: cases[ref.id])
    refs = [CaseRef(name, name, name, (32, 32)) for name in ("c2", "c0", "c1")]
    with frozen(victim):
        features = monitoring._features(victim, source, refs, CPU)
        for ref, row in zip(refs, features, strict=True):
            batch = Batch.of([cases[ref.id]])
            expected = MGM().observe(victim, batch.image, batch.cases)[1][0]
            torch.testing.assert_close(row, expected.detach())
    assert not features.requires_grad


@pytest.mark.parametrize("dims", [2, 3])
def test_pixels_of_a_copy_are_added_up_by_patient_over_batches_of_one_shape(
    monkeypatch: pytest.MonkeyPatch, dims: int
) -> None:
    sides = [4, 4, 4, 5, 5]
    refs = tuple(CaseRef(f"c{n}", f"v{n}", f"p{n % 2}", (side, 4)) for n, side in enumerate(sides))
    asked: list[Any] = []

    def of_split(*words: Any) -> tuple[CaseRef, ...]:
        asked.append(words)
        return refs

    def read(ref: CaseRef) -> Any:
        n, side = int(ref.id[1:]), ref.shape[0]
        image, target = torch.zeros(1, side, 4), torch.zeros(2, side, 4).bool()
        return replace(blobs.case(0), id=ref.id, group=ref.group, image=image + n, target=target)

    sizes: list[int] = []

    def measured(student: Any, victim: Any, batch: Batch, eps: float) -> dict[str, Tensor]:
        assert eps == 0.03
        sizes.append(len(batch.cases))
        n = batch.image[:, 0, 0, 0].long()
        pixels = torch.stack([n + 2, n + 1, n], 1)[:, None].expand(-1, 2, -1)
        return dict.fromkeys(extracting.MEASURES[:4], pixels)

    monkeypatch.setattr(extracting, "_measured", measured)
    monkeypatch.setattr(extracting, "BATCH", 2)
    victim = SegModel(torch.nn.Conv2d(1, 2, 1), blobs.TASK).eval()
    victim.dims = dims
    data = Mock(Prepared, refs=of_split, read=read, task=blobs.TASK)
    result = extracting.worth(MODEL, victim, data, 0.03, CPU)
    assert asked == [("test", 0, dims)]
    assert sizes == ([2, 1, 2] if dims == 2 else [1] * 5)
    dice = [2 * sum(n) / (sum(n) * 2 + 3 * len(n)) for n in ((0, 2, 4), (1, 3))]
    assert result["patients"] == 2
    assert result["fidelity"] == pytest.approx(sum(dice) / 2)
    assert math.isnan(result["own"])
    data.refs = lambda *_: ()
    data.name = "toy"
    with pytest.raises(InputError, match="expected test patients in toy"):
        extracting.worth(MODEL, victim, data, 0.03, CPU)


def test_a_copy_is_attacked_with_ten_steps_from_starts_of_its_cases_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = SegModel.forward
    monkeypatch.setattr(SegModel, "forward", lambda self, image: (asked.append(image), real(self, image))[1])
    with frozen(MODEL):
        one, again = (extracting._attacked(MODEL, blobs.batch(2), 0.02) for _ in range(2))
    assert torch.equal(one, again)
    assert sum(image.requires_grad for image in asked) == 2 * 10
