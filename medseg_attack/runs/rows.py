"""Rows: pixel counts of one case and class under one attack; and the fields of a run's header that tables show."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import pyarrow as pa

from medseg_attack.errors import InputError
from medseg_attack.metrics.counts import Overlap

if TYPE_CHECKING:  # runs import no torch
    from medseg_attack.types import Case

ROWS_VERSION = 4  # raised whenever the same run would give other rows
# columns of faults: 1 where an attack met one on the case; absent if it met none on any case of the chunk
WITHOUT_GRADIENT = "without_gradient"  # a gradient by the image was NaN or infinite
WITHOUT_ANSWER = "without_answer"  # an output was NaN or infinite
WITHOUT_SLOPE = "without_slope"  # every gradient by the image was exactly 0
DIAGONAL_MM = "diagonal_mm"  # column of what no distance of the scan exceeds; absent without measures of scans
FAULTS = (WITHOUT_GRADIENT, WITHOUT_ANSWER, WITHOUT_SLOPE)
FIT = "fit_{}"  # field of a header: the cases of such a fault among those that an attack was fitted to
AXES = ("z", "y", "x")  # slices, rows, columns
NAMES = ("model", "attack", "loss", "eps")  # what a run is called in tables
HEADER = (
    *NAMES,
    "model_id",
    "run_id",
    "eps_unit",
    "role",
    "knowledge",
    "ball",
    "data",
    "split",
    "partial",
    "checks",
    "n_parameters",
    "seconds",
    "queries",
    "prompt",
    "cases_id",
)  # kept beside scores
_OF_SCORES = ("run", "case", "volume", "group", "cls", "n_target", "n_pred", "hit", "dice", "iou", "touched")
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


class CaseBudget(NamedTuple):
    """The budget of an attack on one case; see `Row`."""

    budget: float
    width: float
    level: float
    noise: float


class Change(NamedTuple):
    """How large the change of one case is, and how large it might have been; see `Row`."""

    size: float
    linf: float
    budget: CaseBudget


Role: TypeAlias = Literal["control", "attack", "clean"]
Knowledge: TypeAlias = Literal["", "native", "adaptive"]  # of the model's defence; "": it has none, or needs none


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
        stored; NaN: nothing is known of a file), `noise` the standard deviation of its noise, all in [0, 1] of its
        window, which is `width` wide in the scan's unit: budget * width is in that unit, budget / level in stored
        values, budget / noise in noise. `width` and `level` are NaN where channels differ in them.
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

    @classmethod
    def of(
        cls,
        case: "Case",
        name: str,
        *,
        clean: Overlap,
        adv: Overlap,
        change: Change,
        cost: tuple[int, int],
        extra: Mapping[str, float],
    ) -> "Row":
        """The row of one case and the class `name`.

        Args:
            clean: of the clean prediction.
            adv: of the prediction under attack; its truth is the one under attack.
            cost: forward and backward passes.
        """
        z_mm, y_mm, x_mm = (math.nan, *case.spacing_mm)[-3:]
        first = 0  # slice of the scan that the indices are counted from
        if case.stack is not None:
            z_mm, first = case.stack.spacing_mm, case.stack.index
        z_clean, y_clean, x_clean = clean.index_sums
        z_adv, y_adv, x_adv = adv.index_sums
        return cls(
            case=case.id,
            volume=case.volume,
            group=case.group,
            cls=name,
            n_target=clean.target,
            n_clean=clean.pred,
            hit_clean=clean.hit,
            n_adv=adv.pred,
            hit_adv=adv.hit,
            size=change.size,
            linf=change.linf,
            forwards=cost[0],
            backwards=cost[1],
            n_target_adv=adv.target,
            **change.budget._asdict(),
            z_mm=z_mm,
            y_mm=y_mm,
            x_mm=x_mm,
            z_clean=z_clean + first * clean.pred,
            y_clean=y_clean,
            x_clean=x_clean,
            z_adv=z_adv + first * adv.pred,
            y_adv=y_adv,
            x_adv=x_adv,
            extra=dict(extra),
        )


def require_own_columns(metrics: Iterable[str]) -> None:
    """Refuses further measures whose columns would be those of something else, in rows or in tables of scores.

    Raises:
        InputError: the name of one is taken.
    """
    for name in metrics:
        if name in _OF_SCORES or {f"{name}_clean", f"{name}_adv"} & Row.__annotations__.keys():
            raise InputError(
                f"expected a metric with columns of its own, got {name!r}, whose columns hold something else; give it "
                "another name"
            )


def table_of(rows: Sequence[Row]) -> pa.Table:
    """The rows as an Arrow table; measures of single runs are columns after those of all."""
    columns = {name: kind for name, kind in Row.__annotations__.items() if name != "extra"}
    arrays = {name: pa.array([getattr(row, name) for row in rows], _TYPES[kind]) for name, kind in columns.items()}
    for name in sorted({key for row in rows for key in row.extra}):
        arrays[name] = pa.array([row.extra[name] for row in rows], pa.float64())
    return pa.table(arrays)
