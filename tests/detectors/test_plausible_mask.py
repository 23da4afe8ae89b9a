"""The plausible mask: shapes worked out by hand, and masks that no patient has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from medseg_attack.detectors.answers.plausible_mask import (
    AREA,
    COLUMNS,
    CONTACT,
    EDGE,
    FLOOR,
    HOLES,
    LARGEST,
    NEXT,
    PARTS,
    ROWS,
    PlausibleMask,
    _per_scan,
    shapes,
)
from medseg_attack.detectors.base import Training
from medseg_attack.stats.alarms import p_values
from medseg_attack.types import Case, Stack, Window

SIDE = 24


def masks(number: int, slices: int = 4) -> torch.Tensor:
    """A ring around a disc in each slice, as in a heart."""
    random = torch.Generator().manual_seed(number)
    row, column, radius = (
        torch.rand(3, generator=random) * torch.tensor([4, 4, 1.5]) + torch.tensor([9, 9, 4])
    ).tolist()
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    distance = ((rows - row) ** 2 + (columns - column) ** 2).sqrt()
    each = [
        torch.stack([distance <= radius - n / 4, (distance > radius - n / 4) & (distance <= radius + 2)])
        for n in range(slices)
    ]
    return torch.stack(each)


def cases(number: int, slices: int = 4) -> tuple[Case, ...]:
    image, target = torch.rand(1, SIDE, SIDE), torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    return tuple(
        Case(
            f"{number}_{n}", f"v{number}", f"p{number}", image, target, (2.0, 2.0), Window(0, 1), Stack(n, slices, 5.0)
        )
        for n in range(slices)
    )


def fitted(patients: range) -> PlausibleMask:
    each = [(shapes(masks(n), cases(n)).flatten(1), cases(n)) for n in patients]
    return PlausibleMask().fitted(
        Training(torch.cat([numbers for numbers, _ in each]), tuple(case for _, some in each for case in some))
    )


def score(detector: PlausibleMask, mask: torch.Tensor, number: int = 0) -> float:
    scores = detector.score(shapes(mask, cases(number)).flatten(1), cases(number))
    assert len(set(scores.tolist())) == 1, "a scan has one score"
    return float(scores[0])


def test_the_shape_of_a_mask_is_what_can_be_counted() -> None:
    mask = torch.zeros(2, 2, SIDE, SIDE, dtype=torch.bool)
    mask[0, 0, 2:7, 3:8] = True
    mask[0, 0, 4, 5] = False  # a hole
    mask[0, 0, 20, 20] = True  # a second part
    mask[0, 1, 2:7, 8:10] = True  # beside it
    mask[1, 0, 2:7, 3:8] = True
    numbers = shapes(mask, cases(0, 2))[0, 0]
    ml = 2 * 2 * 5 / 1000
    assert numbers[AREA] == pytest.approx(25 * ml)
    assert numbers[PARTS] == 2
    assert numbers[LARGEST] == pytest.approx(24 * ml)
    assert numbers[HOLES] == pytest.approx(1 * ml)
    assert numbers[CONTACT] == pytest.approx(5 * ml)
    assert numbers[NEXT] == pytest.approx(2 * ml)  # the hole and the second part
    assert numbers[EDGE] == pytest.approx((16 + 4 + 1) * ml)
    assert numbers[ROWS] / numbers[AREA] == pytest.approx((24 * 4 + 20) / 25 / (SIDE - 1))
    assert numbers[COLUMNS] / numbers[AREA] == pytest.approx((24 * 5 + 20) / 25 / (SIDE - 1))


def test_the_features_of_a_scan_are_shares_of_all_its_slices() -> None:
    """Two slices of three, in which the organ is a square with a hole and a pixel apart, and a square without."""
    mask = torch.zeros(3, 2, SIDE, SIDE, dtype=torch.bool)
    mask[:2, 0, 2:7, 3:8] = True
    mask[0, 0, 4, 5], mask[0, 0, 20, 20] = False, True
    mask[0, 1, 2:7, 8:10] = True  # beside it
    mask[0, 1, SIDE - 1, 4] = mask[0, 1, 4, SIDE - 1] = True  # in its columns and rows, and not in contact
    of_scan = cases(0, 3)
    features, scans = _per_scan(shapes(mask, of_scan).flatten(1), of_scan)
    assert scans.tolist() == [0, 0, 0]
    pixels, ml = 25 + 25, 2 * 2 * 5 / 1000
    expected = [
        np.log1p(pixels * ml),
        2 / 3,  # of the slices
        (2 + 1) / 2,  # parts
        1 - (24 + 25) / pixels,  # outside of the largest one
        1 / pixels,  # hole
        (24 * 4 + 20 + 25 * 4) / pixels / (SIDE - 1),
        (24 * 5 + 20 + 25 * 5) / pixels / (SIDE - 1),
        (16 + 4 + 1 + 16) / pixels,  # edges
        5 / (16 + 4 + 1 + 16),  # in contact
        (2 + 25) / pixels,  # what the next slice has otherwise: the hole and the part; all of it
    ]
    assert features[0, : len(expected)].tolist() == pytest.approx(expected)
    (first,), _ = _per_scan(shapes(mask[:1], of_scan[:1]).flatten(1), of_scan[:1])
    assert first[[1, 2]].tolist() == [1.0, 2.0], "a scan of one slice"
    alone = replace(of_scan[0], stack=None)
    assert shapes(mask[:1], (alone,))[0, 0, AREA] == pytest.approx(25 * 2 * 2 / 100)  # cm^2 of a slice of no scan
    none, _ = _per_scan(shapes(torch.zeros_like(mask), of_scan).flatten(1), of_scan)
    assert none[0].tolist() == [0.0] * 20


def test_a_feature_that_hardly_varies_counts_by_its_robust_scale() -> None:
    """Ten of its least scale away its square is 100, though it varied by 0.4 of it among the training patients."""
    patients = 400
    of_scans = tuple(cases(n, 1)[0] for n in range(patients))
    statistics = torch.zeros(patients, 1, 9, dtype=torch.float64)
    statistics[:, 0, [AREA, LARGEST]] = torch.linspace(1, 2, patients, dtype=torch.float64)[:, None]
    statistics[:, 0, PARTS] = 1 + 0.02 * (-1) ** torch.arange(patients)
    detector = PlausibleMask().fitted(Training(statistics.flatten(1), of_scans))
    usual, odd = statistics[200:201].clone(), statistics[200:201].clone()
    usual[0, 0, PARTS], odd[0, 0, PARTS] = 1, 1 + 10 * FLOOR
    near, far = (float(detector.score(x.flatten(1), of_scans[:1])) for x in (usual, odd))
    assert far - near == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("patients", [6, 200])
def test_a_feature_that_all_training_patients_share_counts_by_its_robust_scale(patients: int) -> None:
    """However many they are: ten floors of a scale away, its square is 100."""
    of_scans = [cases(n, 1)[0] for n in range(patients)]
    statistics = torch.zeros(patients, 1, 9, dtype=torch.float64)
    statistics[:, 0, [AREA, LARGEST]] = torch.linspace(1, 2, patients, dtype=torch.float64)[:, None]
    statistics[:, 0, PARTS] = 1
    detector = PlausibleMask().fitted(Training(statistics.flatten(1), tuple(of_scans)))
    odd = statistics[:1].clone()
    odd[0, 0, PARTS] = 1.5
    usual, distance = (float(detector.score(x.flatten(1), of_scans[:1])) for x in (statistics[:1], odd))
    assert distance - usual == pytest.approx(100, rel=1e-4)


def test_a_mask_that_no_patient_has_is_in_the_top_1_percent() -> None:
    detector = fitted(range(40))
    unseen = sorted(score(detector, masks(n)) for n in range(100, 300))
    top = unseen[-2]
    usual = masks(400)
    empty, inverted = torch.zeros_like(usual), ~usual
    halved = usual.clone()
    halved[1:] = False
    for odd in (empty, inverted, halved, usual.roll(8, -1)):
        assert score(detector, odd) > top


def test_true_masks_of_unseen_patients_raise_as_many_alarms_as_promised() -> None:
    detector = fitted(range(40))
    calibration, unseen = (
        np.array([score(detector, masks(n)) for n in range(start, start + 99)]) for start in (1000, 2000)
    )
    p = p_values(unseen, calibration)
    assert binomtest(int((p <= 0.05).sum()), 99, 0.05).pvalue > 0.05


def test_slices_of_other_scans_do_not_matter() -> None:
    detector = fitted(range(20))
    both = torch.cat([masks(500), masks(501)])
    of_both = (*cases(500), *cases(501))
    scores = detector.score(shapes(both, of_both).flatten(1), of_both)
    assert scores[0] == pytest.approx(score(detector, masks(500), 500))
    assert scores[-1] == pytest.approx(score(detector, masks(501), 501))
    picture = tuple(replace(case, stack=None, volume=case.id) for case in cases(7))
    assert torch.isfinite(detector.score(shapes(masks(7), picture).flatten(1), picture)).all()
