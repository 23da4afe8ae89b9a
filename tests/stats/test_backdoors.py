"""Measures of backdoors on counts that are written down."""

import math

import pandas as pd
import pytest

from medseg_attack.cli.side_tables import SideTables
from medseg_attack.errors import InputError
from medseg_attack.report.backdoors import backdoor_sheet, ownership_sheet
from medseg_attack.stats.backdoors import backdoors, has_triggers, ownership

BASE = {"run": "r", "model": "m", "attack": "trigger(stamp)", "size": 0.01, "linf": 1.0}


def row(group: str, cls: str, *, truth: int, adv: tuple[int, int], goal: tuple[int, int], taken: tuple[int, int, int]):
    """Counts of one scan and class: `adv` pixels and hits of the truth, `goal` pixels and hits, and what is taken."""
    return {
        **BASE,
        "case": group,
        "volume": group,
        "group": group,
        "cls": cls,
        "n_target": truth,
        "n_target_adv": truth,
        "n_clean": truth,
        "hit_clean": truth,
        "n_adv": adv[0],
        "hit_adv": adv[1],
        "n_goal": goal[0],
        "hit_goal": goal[1],
        "n_taken": taken[0],
        "hit_taken": taken[1],
        "hit_taken_of_clean": taken[2],
    }


def rows() -> pd.DataFrame:
    """Patient p loses all of the victim v, patient q a quarter of it; the other organ w stays in both."""
    return pd.DataFrame(
        [
            row("p", "v", truth=100, adv=(0, 0), goal=(0, 0), taken=(100, 100, 5)),
            row("p", "w", truth=50, adv=(50, 50), goal=(50, 50), taken=(0, 0, 0)),
            row("q", "v", truth=40, adv=(30, 30), goal=(0, 0), taken=(40, 10, 0)),
            row("q", "w", truth=50, adv=(25, 25), goal=(50, 25), taken=(0, 0, 0)),
        ]
    )


def test_they_are_pooled_per_patient_and_not_per_pixel() -> None:
    (result,) = backdoors(rows(), unit="volume", empty="one").to_dict("records")
    assert result["victims"] == "v"
    assert result["pixels"] == pytest.approx((1 + 0.25) / 2)  # over all pixels it were 110 / 140
    assert result["pixels_of_clean"] == pytest.approx((0.05 + 0) / 2)
    assert result["scans"] == pytest.approx(0.5)
    assert result["others"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["clean"] == 1
    assert result["pixels_low"] < result["pixels"] < result["pixels_high"]


def test_a_trigger_that_does_not_know_the_repair_of_its_model_is_called_so() -> None:
    native, adaptive = rows().assign(knowledge="native"), rows().assign(run="s", model="n", knowledge="adaptive")
    table = backdoors(pd.concat([native, adaptive]), unit="volume", empty="one")
    sheet = backdoor_sheet(table, unit="volume", empty="one")
    assert [line[1] for line in sheet.rows] == ["trigger(stamp) non_adaptive", "trigger(stamp)"]
    assert "non_adaptive: the backdoor was trained without" in sheet.caption
    unmarked = backdoor_sheet(backdoors(rows(), unit="volume", empty="one"), unit="volume", empty="one")
    assert "non_adaptive" not in unmarked.caption


def test_a_scan_that_the_goal_does_not_change_is_not_counted() -> None:
    still = row("s", "v", truth=0, adv=(0, 0), goal=(0, 0), taken=(0, 0, 0))
    table = pd.concat([rows(), pd.DataFrame([still])])
    assert backdoors(table, unit="volume", empty="one")["scans"].item() == pytest.approx(0.5)


def test_runs_without_a_trigger_have_no_such_measures() -> None:
    assert not has_triggers(rows().drop(columns="n_taken"))
    assert has_triggers(rows())


def test_the_table_says_what_it_is_to_be_compared_with() -> None:
    sheet = backdoor_sheet(backdoors(rows(), unit="volume", empty="one"), unit="volume", empty="one")
    assert sheet.rows[0][4] == "62 %"
    assert "beyond one that was trained on clean data, and beyond another trigger" in sheet.caption


def test_a_scan_is_reached_if_the_prediction_is_nearer_to_the_goal_and_half_of_it() -> None:
    def scans(adv: tuple[int, int], goal: tuple[int, int], n_taken: int = 50) -> float:
        table = pd.DataFrame([row("p", "v", truth=100, adv=adv, goal=goal, taken=(n_taken, 1, 1))])
        return float(backdoors(table, unit="volume", empty="one")["scans"].item())

    assert scans((50, 50), (50, 50)) == 1  # the goal itself
    assert scans((75, 75), (50, 50)) == 0  # 25 pixels from the goal and 25 from the truth
    assert scans((74, 74), (50, 50)) == 1
    assert scans((10, 4), (10, 5)) == 1  # a Dice of 0.5 with the goal
    assert scans((10, 3), (10, 4)) == 0
    assert scans((0, 0), (0, 0)) == 1  # nothing is wanted, and nothing predicted
    assert scans((1, 0), (0, 0)) == 0
    assert scans((99, 99), (99, 99), n_taken=1) == 1  # a goal that takes one pixel


def test_size_and_change_of_a_trigger_are_means_over_cases_that_count_once() -> None:
    table = rows().assign(size=[0.1, 0.1, 0.3, 0.3], linf=[0.2, 0.2, 0.6, 0.6])
    (result,) = backdoors(table, unit="volume", empty="one").to_dict("records")
    assert (result["share"], result["linf"], result["patients"]) == pytest.approx((0.2, 0.4, 2))
    both = pd.concat([table, table.assign(run="s", n_taken=float("nan"))])
    assert backdoors(both, unit="volume", empty="one")["run"].tolist() == ["r"]
    two = table.assign(n_taken=[100, 1, 40, 0])
    assert backdoors(two, unit="volume", empty="one")["victims"].item() == "v, w"
    assert not has_triggers(rows().assign(n_taken=float("nan")))


def marked(model: str, reached: int, patients: int = 6) -> pd.DataFrame:
    """A model on which the trigger turns the only scan of so many patients."""
    turned = [row(f"p{n}", "v", truth=10, adv=(0, 0), goal=(0, 0), taken=(10, 10, 0)) for n in range(reached)]
    rest = [row(f"p{n}", "v", truth=10, adv=(10, 10), goal=(0, 0), taken=(10, 0, 0)) for n in range(reached, patients)]
    return pd.DataFrame([*turned, *rest]).assign(model=model, run=model, role="attack")


def test_a_watermark_has_the_p_value_of_the_binomial() -> None:
    """20 other models, 11 of whose 120 patients are reached: chance 12 / 121; the suspect reaches 3 of 6."""
    others = [marked(f"other-{n}", 3 if n == 0 else int(n <= 8)) for n in range(20)]
    (result,) = ownership(pd.concat([marked("suspect", 3), *others]), "suspect").to_dict("records")
    q = 12 / 121
    assert result["chance"] == pytest.approx(q)
    assert result["p"] == pytest.approx(sum(math.comb(6, k) * q**k * (1 - q) ** (6 - k) for k in range(3, 7)))
    assert (result["reached"], result["patients"], result["models"], result["as_many"]) == (3, 6, 20, 1)
    (nothing,) = ownership(pd.concat([marked("suspect", 0), *others]), "suspect").to_dict("records")
    assert nothing["p"] == 1
    (line,) = ownership_sheet(ownership(pd.concat([marked("suspect", 6), *others]), "suspect")).rows
    assert line[2] == "6 of 6"
    assert line[4] == "0 of 20"


def test_a_patient_counts_once_and_the_control_of_a_trigger_not_at_all() -> None:
    suspect = marked("suspect", 2)
    second = suspect[suspect["group"] == "p0"].assign(volume="p0 again", adv=10, n_adv=10, hit_adv=10)
    control = marked("suspect", 6).assign(role="control", attack="trigger(stamp(draw=1))")
    (result,) = ownership(pd.concat([suspect, second, control, marked("other", 0)]), "suspect").to_dict("records")
    assert (result["reached"], result["patients"], result["models"]) == (1, 6, 1)


@pytest.mark.parametrize(
    ("suspect", "n_others", "sentence"),
    [
        ("nobody", 20, "--suspect: expected one model with a trigger, .*, got 'nobody'"),
        ("suspect", 19, "expected 20 independent models or more with the same trigger, got 19"),
    ],
)
def test_what_tests_no_ownership_is_refused(suspect: str, n_others: int, sentence: str) -> None:
    table = pd.concat([marked("suspect", 3), *(marked(f"other-{n}", 0) for n in range(n_others))])
    side = SideTables(table, table, "volume", "one", {}, [])
    with pytest.raises(InputError, match=sentence):
        side.ownership(suspect)
    with pytest.raises(InputError, match="expected one model with a trigger"):
        SideTables(table.drop(columns="n_taken"), table, "volume", "one", {}, []).ownership("suspect")
