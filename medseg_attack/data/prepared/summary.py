"""The contents of a prepared data set, as numbers."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from medseg_attack.data.prepared.record import ScanRecord
from medseg_attack.storage.forms import Count, Form
from medseg_attack.types import Task

Ends: TypeAlias = Annotated[list[float], Field(min_length=2, max_length=2)]  # least and largest


class _SizesForm(Form):
    """The number of patients, scans and slices."""

    patients: Count
    scans: Count
    slices: Count


class _OrganForm(Form):
    """The slices and voxels that an organ is labelled in."""

    slices: Count
    voxels: Count


class _SpacingForm(Form):
    """The spacing of voxels, mm."""

    through: Ends
    row: Ends
    column: Ends


class SummaryForm(_SizesForm):
    """The summary as the description of a prepared data set holds it."""

    name: str
    classes: dict[str, _OrganForm]
    rows: Ends
    columns: Ends
    slices_per_scan: Ends
    spacing_mm: _SpacingForm
    intensity: Ends
    unit: str
    splits: dict[str, _SizesForm]
    plane: str = ""
    patient_rule: str = ""


def summary(records: Sequence[ScanRecord], task: Task, splits: dict[str, str | int]) -> dict[str, Any]:
    """The scans' records put together; ranges are [least, largest], spacing in mm."""
    spacing = np.array([record.spacing_mm for record in records])
    _, rows, columns = zip(*(record.shape for record in records), strict=True)
    return {
        "name": task.name,
        **_sizes(records),
        "classes": {
            name: {
                "slices": sum(record.classes[name].slices for record in records),
                "voxels": sum(record.classes[name].voxels for record in records),
            }
            for name in (task.classes[k] for k in task.scored)
        },
        "rows": [min(rows), max(rows)],
        "columns": [min(columns), max(columns)],
        "slices_per_scan": [min(r.shape[0] for r in records), max(r.shape[0] for r in records)],
        "spacing_mm": {
            axis: [float(spacing[:, i].min()), float(spacing[:, i].max())]
            for i, axis in enumerate(("through", "row", "column"))
        },
        "intensity": [min(r.intensity[0] for r in records), max(r.intensity[1] for r in records)],
        "unit": _unit({record.unit for record in records}),
        "splits": {
            str(part): _sizes([record for record in records if splits[record.group] == part])
            for part in sorted(set(splits.values()), key=str)
        },
    }


def _unit(units: set[str]) -> str:
    """The unit of all scans, or all that they have.

    >>> _unit({"HU"}), _unit({""}), _unit({"HU", ""})
    ('HU', '', 'HU or no unit')
    """
    return " or ".join([*sorted(units - {""}), *(["no unit"] if "" in units and len(units) > 1 else [])])


def _sizes(records: Sequence[ScanRecord]) -> dict[str, int]:
    return {
        "patients": len({record.group for record in records}),
        "scans": len(records),
        "slices": sum(record.shape[0] for record in records),
    }
