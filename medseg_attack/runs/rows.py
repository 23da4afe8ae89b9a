"""Rows: pixel counts of one case and class under one attack; and the fields of a run's header that tables show."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pyarrow as pa

ROWS_VERSION = 4  # raised whenever the same run would give other rows


AXES = ("z", "y", "x")  # slices, rows, columns


NAMES = ("model", "attack", "loss", "eps")  # what a run is called in tables


HEADER = (
    *NAMES,
    "role",
    "ball",
    "data",
    "split",
    "partial",
    "n_parameters",
    "seconds",
    "queries",
)  # kept beside scores


Role: TypeAlias = Literal["control", "attack", "clean"]


def role_of(attack: str) -> Role:
    """The role of a run by the first word of its attack, which is a registered name.

    >>> role_of("noise deformation(folds=False)"), role_of("pgd(steps=40)")
    ('control', 'attack')
    """
    name = re.match(r"\w*", attack)
    roles: dict[str, Role] = {"noise": "control", "shuffled": "control", "clean": "clean"}
    return roles.get(name[0] if name else "", "attack")


@dataclass(frozen=True)
class Row:
    """One case and class under one attack, carrying its own clean baseline.

    Attributes:
        n_target, n_clean, n_adv: pixels of the truth, of the clean prediction and of the prediction under attack.
        hit_clean, hit_adv: pixels of those predictions that lie in the truth.
        n_target_adv: pixels of the truth under attack, which an attack that moves anatomy takes along: `hit_adv` counts
        in it. Pixels that a patch covers are left out of all counts, the clean ones, too.
        size: of the change, in the ball's norm and in [0, 1] units, or in the unit that the ball has of its own.
        linf: largest change of one pixel, whatever the ball.
        forwards, backwards: passes that the attack alone spent on the case.
        budget: the case's eps (NaN where the ball has a unit of its own), `level` one stored value (0: floats are
        stored), `noise` the standard deviation of its noise, all in [0, 1] of its window, which is `width` wide in the
        scan's unit: budget * width is in that unit, budget / level in stored values, budget / noise in noise.
        z_mm, y_mm, x_mm: from slice to slice, row to row and column to column; z_mm is NaN for a slice of no scan.
        z_clean, y_clean, x_clean, z_adv, y_adv, x_adv: sums of the slice, row and column indices of a prediction's
        pixels. Like counts they add up over slices, and give the centroid in mm.
        extra: other measures, NaN where undefined: a column each on disk. Those of a scan stand on each of its slices.
    """

    case: str
    volume: str
    group: str
    cls: str
    n_target: int
    n_clean: int
    hit_clean: int
    n_adv: int
    hit_adv: int
    size: float
    linf: float
    forwards: int
    backwards: int
    n_target_adv: int
    budget: float = math.nan
    width: float = math.nan
    level: float = math.nan
    noise: float = math.nan
    z_mm: float = math.nan
    y_mm: float = math.nan
    x_mm: float = math.nan
    z_clean: int = 0
    y_clean: int = 0
    x_clean: int = 0
    z_adv: int = 0
    y_adv: int = 0
    x_adv: int = 0
    extra: dict[str, float] = field(default_factory=dict)


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = {name: kind for name, kind in Row.__annotations__.items() if name != "extra"}
    arrays = {name: pa.array([getattr(row, name) for row in rows], _TYPES[kind]) for name, kind in columns.items()}
    for name in sorted({key for row in rows for key in row.extra}):
        arrays[name] = pa.array([row.extra[name] for row in rows], pa.float64())
    return pa.table(arrays)
