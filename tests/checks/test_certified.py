"""The flag of certificates."""

import pandas as pd

from medseg_attack.checks.certified import check_soundness


def test_ma039_a_refuted_bound_is_named_once_per_scan_and_radius() -> None:
    rows = pd.DataFrame(
        {
            "volume": ["a", "a", "b", "b"],
            "cls": ["lv", "rv", "lv", "rv"],
            "radius": [0.1, 0.1, 0.1, 0.1],
            "refuted": ["Dice at most 0.1", "Dice at most 0.1", "", ""],
        }
    )
    (finding,) = check_soundness(rows)
    assert (finding.code, finding.about, finding.numbers) == ("MA039", "a", "radius 0.1: Dice at most 0.1")
    assert check_soundness(rows[rows["volume"] == "b"]) == []
