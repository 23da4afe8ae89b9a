"""Audits of training data: each gives every training patient a score, which should be high for poisoned patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch import Tensor

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.detectors.features import pooled
from medseg_attack.errors import InputError, listed
from medseg_attack.escaping import shell
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.hidden_maps import hidden
from medseg_attack.models.model_ref import ModelRef
from medseg_attack.models.segmodel import frozen
from medseg_attack.stats.spectral import spectral_scores
from medseg_attack.types import Batch, CaseRef

BATCH = 16


@dataclass(frozen=True)
class Suspect:
    """A training patient with the score of an audit.

    Attributes:
        score: larger is more suspicious.
        bias: relative error of the predicted volume, mean over classes; NaN if the audit compares no masks.
    """

    patient: str
    score: float
    bias: float = nan


def spectral(model_ref: ModelRef, data: Prepared, device: torch.device) -> list[Suspect]:
    """Scores the training patients of a model by spectral signatures; the most suspicious patient comes first.

    The features of a patient are the channel means of the network's deepest map, averaged over the patient's slices.
    An attacker who knows this audit adds decoys: patients with other triggers and true masks. Decoys spread the
    direction that the audit looks for.
    """
    refs = data.refs("train", fold_of(model_ref, data), model_ref.dims)
    if len({ref.group for ref in refs}) < 2:
        raise InputError(f"expected two training patients or more in {data.root}, got fewer; prepare more patients")
    model = model_ref.load(data.task, device)
    sums: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = {}
    with frozen(model), torch.no_grad():
        for group in _batches(refs):
            batch = Batch.of([data.read(ref) for ref in group], device)
            (features,) = pooled(hidden(model, batch.image)[1], "deepest")
            for case, feature in zip(batch.cases, features.cpu().numpy(), strict=True):
                sums.setdefault(case.group, []).append(feature)
    means = np.stack([np.mean(features, 0) for features in sums.values()])
    if broken := [group for group, mean in zip(sums, means, strict=True) if not np.isfinite(mean).all()]:
        raise InputError(
            f"expected finite features of every training patient in {data.root}, got NaN or infinity of "
            f"{listed(broken)}; look at them with medattack doctor --data {shell(str(data.root))}"
        )
    scores = spectral_scores(means)
    return _sorted([Suspect(patient, float(score)) for patient, score in zip(sums, scores, strict=True)])


def disagreement(model_refs: Sequence[ModelRef], data: Prepared, device: torch.device) -> list[Suspect]:
    """Scores patients by how far their masks differ from the prediction of a model that was trained without them.

    The model of a patient is that of the fold that validates on the patient. The score is 1 - Dice over all slices of
    the patient, averaged over the classes that the mask or the prediction has. An attacker who knows this audit gives
    most patients of all folds the same bias, as `relabel(shrink(2))` with a large share does: the models learn it, and
    agree with the masks.

    Raises:
        InputError: two models were trained without the same fold.
    """
    by_fold: dict[int, ModelRef] = {}
    for model_ref in model_refs:
        if (fold := fold_of(model_ref, data)) in by_fold:
            raise InputError(
                f"expected models of different folds, got {by_fold[fold].label} and {model_ref.label} of fold {fold}; "
                "train each with another --fold"
            )
        by_fold[fold] = model_ref
    suspects = [suspect for fold, model_ref in by_fold.items() for suspect in _of_fold(model_ref, fold, data, device)]
    return _sorted(suspects)


def _of_fold(model_ref: ModelRef, fold: int, data: Prepared, device: torch.device) -> list[Suspect]:
    refs = data.refs("val", fold, model_ref.dims)
    if not refs:
        raise InputError(
            f"expected patients in fold {fold} of {data.root}, which {model_ref.label} was trained without, got none; "
            "prepare more patients, or with less --folds"
        )
    model = model_ref.load(data.task, device)
    pixels: dict[str, Tensor] = {}
    with frozen(model), torch.no_grad():
        for group in _batches(refs):
            batch = Batch.of([data.read(ref) for ref in group], device)
            each = counts(model.decide(model(batch.image)), batch.target)[:, list(data.task.scored)].cpu()
            for case, own in zip(batch.cases, each, strict=True):
                pixels[case.group] = pixels.get(case.group, torch.zeros_like(own)) + own
    result = []
    for patient, counted in pixels.items():
        truth, pred, _ = counted.double().unbind(-1)
        bias = (pred / truth - 1)[truth > 0]
        dice = dice_of(counted, empty=nan).nanmean()
        result.append(Suspect(patient, 1 - float(dice), float(bias.mean()) if len(bias) else nan))
    return result


def fold_of(model_ref: ModelRef, data: Prepared) -> int:
    """The fold that a model was trained without.

    Raises:
        InputError: the model was not trained on these data by `medattack train`.
    """
    training = model_ref.card.get("training")
    dataset = model_ref.card.get("dataset", {})
    if not isinstance(training, Mapping) or dataset.get("fingerprint") != data.fingerprint:
        raise InputError(
            f"expected a model that was trained on {data.root}, got {model_ref.label}, which was not; train one on it"
        )
    return int(training.get("fold", 0))


def _batches(refs: Sequence[CaseRef]) -> list[Sequence[CaseRef]]:
    """Cases of one shape in batches; they come sorted by shape."""
    groups = [[ref for ref in refs if ref.shape == shape] for shape in dict.fromkeys(ref.shape for ref in refs)]
    return [group[n : n + BATCH] for group in groups for n in range(0, len(group), BATCH)]


def _sorted(suspects: Sequence[Suspect]) -> list[Suspect]:
    return sorted(suspects, key=lambda suspect: -suspect.score)
