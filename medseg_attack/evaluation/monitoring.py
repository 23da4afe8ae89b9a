"""A monitor of the queries to a model: an alarm once they look unlike its own patients, with a rate of false alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.detectors.density.mgm import MGM
from medseg_attack.detectors.gaussian import fit_gaussian, squared_distance
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch, CaseRef, CaseSource

WINDOW = 25  # queries whose mean suspicion is looked at
STREAMS = 1000  # of queries, drawn from clean patients
RATE = 0.05  # of false alarms in a stream, that the limit is chosen for

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Watch:
    """The outcome of a monitor.

    Attributes:
        window: queries of which the mean suspicion is compared with the limit.
        alarm: number of queries after which there is an alarm; 0 for none.
        false_alarms: share of as long streams of unseen patients of the model's own data that raise one.
        cover: the fewest usual queries before each of the thief's with which there is no alarm; None where no number
            of them hides the thief.
    """

    window: int
    alarm: int
    false_alarms: float
    cover: int | None


def watch(
    victim: SegModel, own: Prepared, source: CaseSource, queries: Sequence[CaseRef], fold: int, device: torch.device
) -> Watch:
    """The verdict of a monitor on a stream of queries.

    A query is as suspicious as its deepest features are far from those of the training patients (Mahalanobis). The
    limit is that of streams of the validation patients, of which `RATE` would raise an alarm. A thief who knows the
    monitor hides each query among usual ones (`least_cover`), and pays for these, too.

    Args:
        own: data that the victim learned from; its test patients give the rate of false alarms, and stand for the usual
            scans of a thief who hides.
        source: reads the queries.

    Raises:
        InputError: the own data lack training, validation or test patients.
    """
    parts = {name: own.refs(name, fold, victim.dims) for name in ("train", "val", "test")}
    if absent := [name for name, refs in parts.items() if not refs]:
        raise InputError(
            f"expected training, validation and test patients in {own.root} for a monitor, got no {absent[0]} "
            "patients; prepare more patients"
        )
    with frozen(victim):
        known = fit_gaussian(_features(victim, own, parts["train"], device))
        suspicion = {
            name: squared_distance(_features(victim, own, parts[name], device), **known).numpy()
            for name in ("val", "test")
        }
        asked = squared_distance(_features(victim, source, queries, device), **known).numpy()
    window, rng = min(WINDOW, len(queries)), np.random.default_rng(0)
    usual, unseen = (
        peaks(_by_patient(parts[name], suspicion[name]), len(queries), window, rng) for name in ("val", "test")
    )
    limit = float(np.quantile(usual, 1 - RATE, method="higher"))
    cover = least_cover(asked, rng.permutation(suspicion["test"]), window, limit)
    return Watch(window, first_alarm(asked, window, limit), float((unseen > limit).mean()), cover)


def first_alarm(suspicion: Array, window: int, limit: float) -> int:
    """The number of queries after which the mean of the last `window` is above the limit; 0 where it never is.

    >>> first_alarm(np.array([0.0, 0.0, 4.0, 4.0, 4.0]), 2, 3.0)
    4
    """
    above = np.flatnonzero(_means(suspicion, window) > limit)
    return int(above[0]) + window if len(above) else 0


def covered(suspicion: Array, usual: Array, n: int) -> Array:
    """A stream with `n` usual queries before each query; the usual ones are repeated in their order.

    >>> covered(np.array([9.0, 8.0]), np.array([0.0, 1.0, 2.0]), 2).tolist()
    [0.0, 1.0, 9.0, 2.0, 0.0, 8.0]
    """
    before = np.resize(usual, (len(suspicion), n))
    return np.concatenate((before, suspicion[:, None]), axis=1).ravel()


def least_cover(suspicion: Array, usual: Array, window: int, limit: float) -> int | None:
    """The least number of usual queries before each query that keeps every window within the limit; None if none does.

    From `window - 1` on a window holds one query alone, and more of them hide nothing further.

    Args:
        usual: suspicion of scans that look like the model's own.

    >>> least_cover(np.full(60, 10.0), np.ones(8), 25, 2.0)  # two queries in 25 pass: 2 * 10 + 23 <= 25 * 2
    12
    """
    for n in range(window):
        if not first_alarm(covered(suspicion, usual, n), window, limit):
            return n
    return None


def peaks(suspicion: Mapping[str, Array], n: int, window: int, rng: np.random.Generator) -> Array:
    """The largest mean of a window in each of `STREAMS` streams of n queries.

    A stream has whole patients, drawn with replacement, with their slices in order: slices of a patient are alike.
    """
    patients = list(suspicion.values())
    result = np.empty(STREAMS)
    for stream in range(STREAMS):
        parts: list[Array] = []
        while sum(map(len, parts)) < n:
            parts.append(patients[rng.integers(len(patients))])
        result[stream] = _means(np.concatenate(parts)[:n], window).max()
    return result


def _means(values: Array, window: int) -> Array:
    """The mean of each run of `window` values."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return (sums[window:] - sums[:-window]) / window


def _by_patient(refs: Sequence[CaseRef], values: Array) -> dict[str, Array]:
    groups = np.array([ref.group for ref in refs])
    return {str(group): values[groups == group] for group in dict.fromkeys(groups.tolist())}


def _features(victim: SegModel, source: CaseSource, refs: Sequence[CaseRef], device: torch.device) -> torch.Tensor:
    """The deepest features of each case, (cases, numbers), in the order of `refs`."""
    detector, result = MGM(), []
    with torch.no_grad():
        for ref in refs:
            batch = Batch.of([source.read(ref)], device)
            result.append(detector.observe(victim, batch.image, batch.cases)[1].cpu())
    return torch.cat(result)
