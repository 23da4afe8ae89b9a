"""One row from named records: voxel sizes, and sums of indices counted from the scan's first slice."""

import math
from dataclasses import dataclass, field

import pytest

from medseg_attack.metrics.counts import Overlap
from medseg_attack.runs.rows import CaseBudget, Change, Row


@dataclass(frozen=True)
class Slice:
    index: int = 3
    spacing_mm: float = 5.0


@dataclass(frozen=True)
class Scored:
    spacing_mm: tuple[float, ...] = (1.0, 2.0)
    stack: Slice | None = field(default_factory=Slice)
    id: str = "p1_s1_3"
    volume: str = "p1_s1"
    group: str = "p1"


CLEAN, ADV = Overlap(10, 8, 6, (0, 20, 30)), Overlap(11, 4, 2, (0, 40, 50))
CHANGE = Change(0.1, 0.2, CaseBudget(budget=0.3, width=400.0, level=0.01, noise=0.02))


def row_of(case: Scored) -> Row:
    return Row.of(case, "liver", clean=CLEAN, adv=ADV, change=CHANGE, cost=(7, 5), extra={"success": 1.0})


def test_a_row_holds_what_its_records_hold() -> None:
    assert row_of(Scored()) == Row(
        case="p1_s1_3",
        volume="p1_s1",
        group="p1",
        cls="liver",
        n_target=10,
        n_clean=8,
        hit_clean=6,
        n_adv=4,
        hit_adv=2,
        size=0.1,
        linf=0.2,
        forwards=7,
        backwards=5,
        n_target_adv=11,
        budget=0.3,
        width=400.0,
        level=0.01,
        noise=0.02,
        z_mm=5.0,
        y_mm=1.0,
        x_mm=2.0,
        z_clean=24,
        y_clean=20,
        x_clean=30,
        z_adv=12,
        y_adv=40,
        x_adv=50,
        extra={"success": 1.0},
    )


@pytest.mark.parametrize(("spacing_mm", "z_mm"), [((1.0, 2.0), math.nan), ((4.0, 1.0, 2.0), 4.0)])
def test_a_case_that_is_no_slice_counts_from_its_own_first(spacing_mm: tuple[float, ...], z_mm: float) -> None:
    row = row_of(Scored(spacing_mm=spacing_mm, stack=None))
    assert (row.z_clean, row.z_adv, row.y_mm, row.x_mm) == (0, 0, 1.0, 2.0)
    assert row.z_mm == pytest.approx(z_mm, nan_ok=True)
