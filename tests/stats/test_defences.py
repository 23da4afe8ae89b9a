"""Verdicts on defences from rows: what an interval over patients allows to say, and what ranks."""

import numpy as np
import pandas as pd
import pytest

from medseg_attack.report.defences import conclusion, trial_sheets
from medseg_attack.report.sheet import PARTIAL, rich_table
from medseg_attack.stats.defences import HELPS, NATIVE_ONLY, USELESS, worths
from medseg_attack.stats.defences import verdict as verdict_of
from medseg_attack.stats.patients import Difference

TWIN, MODEL, OTHER = "twin", "model", "other"


def rows(levels: dict[tuple[str, str, str], float], patients: int = 10, spread: float = 0.02) -> pd.DataFrame:
    """Rows of runs whose Dice is about a level in each patient: (model, part, role) -> Dice."""
    rng = np.random.default_rng(0)
    table = []
    for number, ((model, part, role), dice) in enumerate(levels.items()):
        for patient in range(patients):
            for cls in ("a", "b"):
                hit = round(1000 * float(np.clip(dice + spread * rng.standard_normal(), 0, 1)))
                table.append(
                    {
                        "run": f"r{number}",
                        "model": model,
                        "part": part,
                        "role": role,
                        "attack": f"attack{number}",
                        "group": f"p{patient}",
                        "volume": f"v{patient}",
                        "case": f"c{patient}",
                        "cls": cls,
                        "n_target": 1000,
                        "n_clean": 1000,
                        "hit_clean": 900,
                        "n_target_adv": 1000,
                        "n_adv": 1000,
                        "hit_adv": hit,
                        "passes": 1,
                    }
                )
    return pd.DataFrame(table)


def levels(native: float, adaptive: float, twin: float = 0.3, model: str = MODEL) -> dict[tuple[str, str, str], float]:
    return {
        (TWIN, "native", "control"): 0.88,
        (TWIN, "native", "attack"): twin,
        (TWIN, "adaptive", "attack"): twin,
        (TWIN, "queries", "attack"): 0.7,
        (model, "native", "control"): 0.87,
        (model, "native", "attack"): native,
        (model, "adaptive", "attack"): adaptive,
        (model, "transfer", "attack"): 0.8,
        (model, "queries", "attack"): 0.8,
    }


def verdict(patients: int = 10, spread: float = 0.02, **of: float) -> str:
    table = worths(rows(levels(**of), patients, spread), TWIN, {}, unit="volume", empty="one")
    return str(table[(table["organ"] == "mean") & (table["model"] == MODEL)]["verdict"].item())


def test_the_verdict_is_that_of_the_worst_attack() -> None:
    assert verdict(native=0.7, adaptive=0.6) == HELPS
    assert verdict(native=0.8, adaptive=0.3) == NATIVE_ONLY
    assert verdict(native=0.3, adaptive=0.29) == USELESS
    assert verdict(native=0.3, adaptive=0.1) == USELESS


def test_few_patients_and_wide_intervals_decide_nothing() -> None:
    assert verdict(patients=5, native=0.7, adaptive=0.6) == "not decided with 5 patients"
    assert verdict(spread=0.3, native=0.35, adaptive=0.45) == "not decided with 10 patients"


def test_the_worst_is_taken_case_by_case() -> None:
    """Two attacks that each break half of the patients break all of them together."""
    table = rows(levels(0.8, 0.8), spread=0.0)
    first = (table["model"] == MODEL) & (table["role"] == "attack")
    even = table["group"].isin([f"p{n}" for n in range(0, 10, 2)])
    table.loc[first & (table["part"] == "native") & even, "hit_adv"] = 0
    table.loc[first & (table["part"] == "queries") & ~even, "hit_adv"] = 0
    result = worths(table, TWIN, {}, unit="volume", empty="one").set_index(["organ", "model"]).loc[("mean", MODEL)]
    assert (result["native"], result["queries"], result["worst"]) == pytest.approx((0.4, 0.4, 0.0))


def test_what_no_attack_knows_has_no_verdict_and_comes_last() -> None:
    both = levels(0.5, 0.5) | levels(0.9, 0.9, model=OTHER)
    table = worths(rows(both), TWIN, {OTHER: "MA003"}, unit="volume", empty="one")
    mean = table[table["organ"] == "mean"]
    assert list(mean["model"]) == [TWIN, MODEL, OTHER]
    assert list(mean["verdict"])[1:] == [HELPS, "non_adaptive (MA003)"]
    assert conclusion(table) == ["model: helps", "other: non_adaptive (MA003)"]


def test_every_organ_has_a_table_within_100_columns() -> None:
    many = {key: value for n in range(5) for key, value in levels(0.5, 0.4, model=f"guarded('unet', {n})").items()}
    table = worths(rows(many), TWIN, {}, unit="volume", empty="one")
    sheets = list(trial_sheets(table, unit="volume", empty="one"))
    assert [sheet.title for sheet in sheets] == ["Mean over organs"] * 2 + ["a"] * 2 + ["b"] * 2
    assert all(sheet.columns[1] == "twin, undefended" for sheet in sheets)
    assert all(sum(column.width or 0 for column in rich_table(sheet).columns) < 100 for sheet in sheets)


def test_the_interval_of_a_small_difference_holds_it_as_it_is_printed() -> None:
    table = worths(rows(levels(0.5, 0.4)), TWIN, {}, unit="volume", empty="one")
    columns = ["clean_to_twin", "clean_to_twin_low", "clean_to_twin_high"]
    table.loc[~table["is_twin"], columns] = -0.003, -0.0049, -0.0007
    cells = next(iter(trial_sheets(table, unit="volume", empty="one"))).rows
    (row,) = [row for row in cells if row[0] == "to the twin, clean"]
    assert row[-1] == "-0.003 -0.005 to -0.001"


@pytest.mark.parametrize("partial", [False, True])
def test_tables_of_runs_of_some_of_the_cases_say_so(partial: bool) -> None:
    of_runs = rows(levels(0.7, 0.6)).assign(partial=partial)
    sheets = list(trial_sheets(worths(of_runs, TWIN, {}, unit="volume", empty="one"), unit="volume", empty="one"))
    assert [PARTIAL in sheet.caption for sheet in sheets] == [partial, False, False]


def test_what_holds_for_every_organ_is_said_once_and_of_other_patients_again() -> None:
    table = worths(rows(levels(0.7, 0.6)), TWIN, {}, unit="volume", empty="one")
    fewer = table.assign(patients=table["patients"].where(table["organ"] != "b", 2))
    for numbers, are_said in ((table, [True, False, False]), (fewer, [True, False, True])):
        sheets = list(trial_sheets(numbers, unit="volume", empty="one"))
        assert ["paired by patient" in sheet.caption for sheet in sheets] == are_said
    assert "over 2 patients" in sheets[-1].caption


def test_every_organ_has_its_own_numbers_and_the_worst_noise_counts() -> None:
    table = rows(levels(0.7, 0.6), spread=0.0)
    table.loc[table["cls"] == "b", "hit_adv"] -= 100
    more = table[(table["model"] == MODEL) & (table["role"] == "control")].assign(run="r99", attack="other noise")
    worst = worths(
        pd.concat([table, more.assign(hit_adv=more["hit_adv"] - 50)]), TWIN, {}, unit="volume", empty="one"
    ).set_index(["organ", "model"])
    assert worst.loc[("a", MODEL), ["native", "worst", "noise"]].tolist() == pytest.approx([0.7, 0.6, 0.82])
    assert worst.loc[("b", MODEL), ["native", "worst", "noise"]].tolist() == pytest.approx([0.6, 0.5, 0.72])
    assert worst.loc[("mean", MODEL), ["native", "worst", "noise"]].tolist() == pytest.approx([0.65, 0.55, 0.77])
    assert worst.loc[("a", MODEL), ["to_twin", "native_to_twin", "clean_to_twin", "hidden"]].tolist() == pytest.approx(
        [0.3, 0.4, 0.0, 0.1]
    )
    assert worst.loc[("a", TWIN), "is_twin"]
    assert pd.isna(worst.loc[("a", TWIN), "verdict"])
    assert worst["passes"].tolist() == [1] * len(worst)
    assert worst["patients"].tolist() == [10] * len(worst)


def test_models_are_listed_by_their_worst_dice_whatever_their_order() -> None:
    both = levels(0.4, 0.4) | levels(0.6, 0.6, model=OTHER)
    for table in (rows(both), rows(dict(reversed(both.items())))):
        of_mean = worths(table, TWIN, {}, unit="volume", empty="one")
        assert of_mean["model"].tolist() == [TWIN, OTHER, MODEL] * 3
        assert of_mean["organ"].tolist() == ["mean"] * 3 + ["a"] * 3 + ["b"] * 3
        assert of_mean.index.tolist() == list(range(9))
    assert "passes" not in worths(rows(both).drop(columns="passes"), TWIN, {}, unit="volume", empty="one")


def difference(mean: float, low: float, high: float, n: int = 10) -> Difference:
    return Difference(mean, low, high, 0.01, n)


@pytest.mark.parametrize(
    ("worst", "native", "hidden", "expected"),
    [
        (difference(0.03, 0.001, 0.05), difference(0, 0, 0), difference(0, 0, 0), HELPS),
        (difference(0.03, 0.0, 0.05), difference(0, 0, 0), difference(0, 0, 0), "not decided with 10 patients"),
        (difference(0.02, 0.01, 0.03), difference(0, 0, 0), difference(0, 0, 0), "not decided with 10 patients"),
        (difference(0.01, 0.005, 0.019), difference(0, 0, 0), difference(0, 0, 0), USELESS),
        (difference(0.0, -0.1, 0.02), difference(0, 0, 0), difference(0, 0, 0), "not decided with 10 patients"),
        (difference(0, -1, 0.01), difference(0.3, 0.1, 0.5), difference(0.2, 0.01, 0.3), NATIVE_ONLY),
        (difference(0, -1, 0.01), difference(0.3, 0.0, 0.5), difference(0.2, 0.01, 0.3), USELESS),
        (difference(0, -1, 0.01), difference(0.02, 0.01, 0.5), difference(0.2, 0.01, 0.3), USELESS),
        (difference(0, -1, 0.01), difference(0.3, 0.1, 0.5), difference(0.2, 0.0, 0.3), USELESS),
        (difference(0.3, 0.2, 0.4, 6), difference(0, 0, 0), difference(0, 0, 0), HELPS),
        (difference(0.3, 0.2, 0.4, 5), difference(0, 0, 0), difference(0, 0, 0), "not decided with 5 patients"),
    ],
)
def test_a_verdict_turns_at_the_ends_of_its_intervals(
    worst: Difference, native: Difference, hidden: Difference, expected: str
) -> None:
    assert verdict_of(worst, native, hidden) == expected
