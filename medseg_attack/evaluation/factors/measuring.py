"""Factors of the scans that runs attacked, computed from the prepared data and, if a factor needs it, the model."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.evaluation.opening import open_run
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry.foreign import at_fault, lent, part_name, words_of
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runtime import deterministic
from medseg_attack.types import Batch


def measured(runs: Sequence[str], factors: Sequence[str], device: torch.device) -> pd.DataFrame:
    """The value of each factor for every model, scan and class of some runs.

    Args:
        runs: folders of finished runs.
        factors: specs of registered factors, such as "luminosity" or "contrast_to_noise(ring=5)".

    Returns:
        Columns: run, group, volume, cls, factor, value; NaN where a factor is not defined.

    Raises:
        InputError: there is no such factor, or the data or the model of a run is not there any more.
    """
    functions: dict[str, Callable[..., Tensor]] = {name: registry.build(name, "factor") for name in factors}
    table: list[dict[str, Any]] = []
    by_model: dict[tuple[str, frozenset[str]], list[str]] = {}
    for run in runs:
        cases = frozenset(RunFolder(Path(run)).table()["case"].to_pylist())
        by_model.setdefault((str(Path(run).parent), cases), []).append(run)
    for (_, cases), of_model in by_model.items():
        data, model, model_ref = open_run(Path(of_model[0]), device)
        with frozen(model), deterministic(device):
            for scan in _scans(data, model, cases, device):
                for name, function in functions.items():
                    values = _values(function, scan, model, model_ref.card)
                    for k in model.task.scored:
                        facts = {"group": scan.cases[0].group, "volume": scan.cases[0].volume}
                        cell = facts | {"cls": model.task.classes[k], "factor": name, "value": values[k]}
                        table += [{"run": run} | cell for run in of_model]
    return pd.DataFrame(table)


def _values(function: Callable[..., Any], scan: Batch, model: SegModel, card: Mapping[str, Any]) -> list[float]:
    """The factor of each class.

    Raises:
        InputError: a factor of somebody else's returns anything but a number, or NaN, for each class.
    """
    own = Batch(lent(function, scan.image), lent(function, scan.target), scan.cases)
    values = function(own, model, dict(card))
    n, name = len(model.task.classes), part_name(function)
    if not isinstance(values, Tensor) or values.shape != (n,) or values.is_complex():
        raise at_fault(
            function,
            f"expected a Tensor ({n},) from {name}, a number for each class, got {words_of(values)}; repair it",
        )
    numbers = [float(value) for value in values.tolist()]
    if any(map(math.isinf, numbers)):
        raise at_fault(function, f"expected finite numbers, or NaN, from {name}, got {numbers}; repair it")
    return numbers


def _scans(data: Prepared, model: SegModel, cases: frozenset[str], device: torch.device) -> Any:
    """The scans of which these are cases, slices of one stacked; each is read when it is asked for."""
    refs: dict[str, list[Any]] = {}
    for ref in data.refs("all", dims=model.dims):
        if ref.id in cases:
            refs.setdefault(ref.volume, []).append(ref)
    read = partial(Batch.of, device=device)
    return (read([data.read(ref) for ref in of_scan]) for of_scan in refs.values())
