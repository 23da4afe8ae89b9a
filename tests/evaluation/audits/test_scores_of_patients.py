"""Scores of training patients by hand: what a mask lacks, how far it is off, and the batches that are read."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers import blobs

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.evaluation.audits import suspects
from medseg_attack.evaluation.audits.suspects import BATCH, Suspect, _batches, _sorted, disagreement, fold_of
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Case, CaseRef

CPU = torch.device("cpu")
# pixels of truth, prediction and both on each slice, of two classes
PIXELS = {
    "p_0": ((8, 4, 2), (0, 0, 0)),
    "p_1": ((2, 6, 1), (0, 3, 0)),
    "q_0": ((0, 0, 0), (5, 5, 5)),
    "r_0": ((0, 2, 0), (0, 0, 0)),
}


def masks(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and prediction with these numbers of pixels, (classes, 4, 5)."""
    truth, pred = torch.zeros(2, 2, 20, dtype=torch.bool)
    for k, (n_truth, n_pred, n_both) in enumerate(PIXELS[name]):
        truth[k, :n_truth] = True
        pred[k, n_truth - n_both : n_truth - n_both + n_pred] = True
    return truth.view(2, 4, 5), pred.view(2, 4, 5)


class AsPainted(torch.nn.Module):
    """Two channels of the image are the masks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 0.5


def data(refs: Sequence[CaseRef]) -> Any:
    def read(ref: CaseRef) -> Case:
        truth, pred = masks(ref.id)
        return replace(blobs.case(0), id=ref.id, group=ref.group, volume=ref.group, image=pred.float(), target=truth)

    asked = Mock(side_effect=lambda split, fold, dims: tuple(refs) if (split, fold, dims) == ("val", 1, 2) else ())
    return Mock(Prepared, refs=asked, read=read, task=blobs.TASK, fingerprint="f", root="data")


def model(fold: int, fingerprint: str = "f") -> Any:
    card = {"training": {"fold": fold}, "dataset": {"fingerprint": fingerprint}}
    network = SegModel(AsPainted(), blobs.TASK, in_channels=2).eval()
    return Mock(ModelRef, card=card, dims=2, label=f"m{fold}", load=lambda task, device: network)


def test_a_patient_scores_what_its_masks_lack_and_its_bias_is_that_of_volumes() -> None:
    refs = [CaseRef(name, name[0], name[0], (4, 5)) for name in PIXELS]
    scored = disagreement([model(1)], data(refs), CPU)
    assert [suspect.patient for suspect in scored] == ["r", "p", "q"]
    r, p, q = scored
    assert p.score == pytest.approx(1 - (2 * 3 / 20 + 0) / 2)
    assert p.bias == pytest.approx(10 / 10 - 1)  # of the class that the truth has
    assert (q.score, q.bias) == pytest.approx((0.0, 0.0))
    assert r.score == pytest.approx(1.0)
    assert math.isnan(r.bias)


def test_a_class_of_one_pixel_has_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PIXELS, "s_0", ((1, 3, 1), (0, 0, 0)))
    (suspect,) = disagreement([model(1)], data([CaseRef("s_0", "s", "s", (4, 5))]), CPU)
    assert suspect.bias == 2
    assert suspect.score == pytest.approx(0.5)  # of the class that either mask has


def test_folds_without_patients_or_twice_are_refused() -> None:
    with pytest.raises(InputError, match="expected patients in fold 2 of data"):
        disagreement([model(2)], data(()), CPU)
    with pytest.raises(InputError, match="got m1 and m1 of fold 1"):
        disagreement([model(1), model(1)], data(()), CPU)
    assert fold_of(model(3), data(())) == 3
    with pytest.raises(InputError, match="got m3, which was not"):
        fold_of(model(3, "g"), data(()))


def test_batches_are_of_one_shape_and_at_most_sixteen() -> None:
    refs = [CaseRef(str(n), "v", "p", (4, 4 + n % 2)) for n in range(66)]
    assert BATCH == 16
    batches = _batches(refs)
    assert [[int(ref.id) for ref in batch] for batch in batches] == [
        list(range(first, last, 2))
        for first in (0, 1)
        for first, last in ((first, 32 + first), (32 + first, 64 + first), (64 + first, 66 + first))
    ]


def test_the_most_suspicious_come_first() -> None:
    unsorted = [Suspect(name, score) for name, score in (("a", 0.1), ("b", 0.9), ("c", 0.9), ("d", -1.0))]
    assert [suspect.patient for suspect in _sorted(unsorted)] == ["b", "c", "a", "d"]


def test_signatures_are_of_the_mean_features_of_each_patients_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice has two features, the brightness of its two channels."""
    values = {"p_0": (1.0, 5.0), "p_1": (3.0, 7.0), "q_0": (8.0, 2.0)}
    refs = [CaseRef(name, name[0], name[0], (4, 5)) for name in values]

    def read(ref: CaseRef) -> Case:
        image = torch.tensor(values[ref.id])[:, None, None].expand(2, 4, 5)
        return replace(blobs.case(0), id=ref.id, group=ref.group, image=image, target=masks(ref.id)[0])

    asked: list[list[list[float]]] = []
    monkeypatch.setattr(suspects, "hidden", lambda model, image: (None, image))
    monkeypatch.setattr(suspects, "pooled", lambda maps, layer: [maps.mean((2, 3))] if layer == "deepest" else [])
    monkeypatch.setattr(suspects, "spectral_scores", lambda means: (asked.append(means.tolist()), means[:, 0])[1])
    source = data(())
    source.refs = lambda *words: tuple(refs) if words == ("train", 1, 2) else ()
    source.read = read
    scores = suspects.spectral(model(1), source, CPU)
    assert [(each.patient, each.score) for each in scores] == [("q", 8.0), ("p", 2.0)]
    assert asked == [[[2.0, 6.0], [8.0, 2.0]]]
