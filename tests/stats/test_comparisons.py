"""Differences and ranks of runs that share their cases, on tables small enough to be worked out by hand."""

from collections.abc import Sequence

import pandas as pd
import pytest

from medseg_attack.stats.comparisons import Side, between, changes, ranks
from medseg_attack.stats.patients import change, holm

PIXELS = 1000


def run(name: str, dice: Sequence[float], organs: Sequence[str] = ("a", "b"), **header: object) -> pd.DataFrame:
    """A run with a clean Dice of 0.9: a patient of one scan for each number, lower by 0.1 in the second organ."""
    rows = [
        {"group": f"p{n}", "volume": f"p{n}", "case": f"p{n}", "cls": organ, "hit_adv": PIXELS * (value - 0.1 * k)}
        for n, value in enumerate(dice)
        for k, organ in enumerate(organs)
    ]
    same = dict.fromkeys(("n_target", "n_target_adv", "n_clean", "n_adv"), PIXELS)
    head = {"run": f"runs/m-1/{name}", "pair": name, "model": "m", "attack": "pgd", "loss": "bce", "role": "attack"}
    head |= {"eps": 0.01, "ball": "linf(eps=0.01)", "hit_clean": 0.9 * PIXELS}
    return pd.DataFrame(rows).assign(**same, **(head | header))


GOOD, BAD = [0.8, 0.7, 0.9, 0.6, 0.75, 0.85, 0.65], [0.7, 0.5, 0.8, 0.45, 0.6, 0.7, 0.6]


def test_changes_are_of_each_organ_and_of_their_mean() -> None:
    new, old = run("x", BAD), run("x", GOOD, run="runs/old/x")
    other = run("noise", GOOD, attack="noise", role="control")
    table = changes(pd.concat([new, other]), pd.concat([old, other]), unit="volume", empty="one")
    assert table["organ"].tolist() == ["mean", "a", "b"] * 2
    of_attack = table[table["attack"] == "pgd"].set_index("organ")
    drop = sum(bad - good for bad, good in zip(BAD, GOOD, strict=True)) / 7
    assert of_attack["mean"].tolist() == pytest.approx([drop] * 3)
    assert of_attack["adv_new"].tolist() == pytest.approx([sum(BAD) / 7 - less for less in (0.05, 0, 0.1)])
    assert of_attack["adv_old"].tolist() == pytest.approx([sum(GOOD) / 7 - less for less in (0.05, 0, 0.1)])
    assert of_attack[["clean_old", "clean_new"]].to_numpy().tolist() == [[pytest.approx(0.9)] * 2] * 3
    assert of_attack["n"].tolist() == [7] * 3
    # the control makes no claim, so that there is one comparison of each organ
    assert of_attack["p_holm"].tolist() == of_attack["p"].tolist() == [pytest.approx(2 / 2**7)] * 3
    assert table.loc[table["role"] == "control", "p_holm"].isna().all()


def test_two_changes_of_one_organ_are_corrected_for_each_other_and_not_for_other_organs() -> None:
    new = pd.concat([run(name, BAD) for name in ("x", "y")])
    old = pd.concat([run(name, GOOD) for name in ("x", "y")])
    table = changes(new, old, unit="volume", empty="one")
    assert table["p_holm"].tolist() == pytest.approx([4 / 2**7] * 6)


def models() -> pd.DataFrame:
    """Two models under an attack and a control; one of them under a second budget, which has no other side."""
    first = [run("x", GOOD), run("n", GOOD, attack="noise", loss=None, role="control"), run("y", BAD, eps=0.02)]
    second = [run("x2", BAD, model="k", run="runs/k-1/x"), run("n2", BAD, model="k", attack="noise", loss=None)]
    second[1] = second[1].assign(role="control", run="runs/k-1/n")
    return pd.concat([*first, *second], ignore_index=True)


def test_models_are_compared_under_the_same_attack_in_the_same_ball() -> None:
    table = between(models(), "model", unit="volume", empty="one")
    assert table[["new", "old", "attack"]].to_numpy().tolist() == [["k", "m", "pgd"], ["k", "m", "noise"]]
    assert table["loss"].tolist() == ["bce", ""]
    assert table["mean"].tolist() == pytest.approx([sum(BAD) / 7 - sum(GOOD) / 7] * 2)
    assert table["p_holm"].tolist()[0] == table["p"].tolist()[0] == pytest.approx(2 / 2**7)
    assert pd.isna(table["p_holm"].tolist()[1])  # which model noise moves more is no claim


def test_attacks_are_compared_on_the_same_weights() -> None:
    table = between(models(), "attack", unit="volume", empty="one")
    assert table[["new", "old", "model"]].to_numpy().tolist() == [["noise", "pgd bce", "m"], ["noise", "pgd bce", "k"]]
    assert table["p_holm"].tolist() == holm(table["p"].tolist())


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    twice = pd.concat([run("x", GOOD), run("y", BAD), run("z", BAD, attack="bim")], ignore_index=True)
    table = between(twice, "attack", unit="volume", empty="one")
    assert set(table["new"]) | set(table["old"]) == {"pgd bce (m-1/x)", "pgd bce (m-1/y)", "bim bce"}
    deeper = twice.assign(run=twice["run"].map({"runs/m-1/x": "one/m-1/x", "runs/m-1/y": "two/m-1/x"}.get))
    table = between(deeper.dropna(subset="run"), "attack", unit="volume", empty="one")
    assert set(table["new"]) | set(table["old"]) == {"pgd bce (one/m-1/x)", "pgd bce (two/m-1/x)"}


@pytest.mark.parametrize(("side", "best"), [("model", "m"), ("attack", "bim bce")])
def test_the_best_model_keeps_most_and_the_best_attack_leaves_least(side: Side, best: str) -> None:
    rows = models() if side == "model" else pd.concat([run("x", GOOD), run("y", BAD, attack="bim")])
    table = ranks(rows, side, unit="volume", empty="one")
    first = table[table["seen"] == 1]
    assert set(first[side]) == {best}
    assert (first[1] > 0.9).all()


def test_a_run_without_another_side_is_compared_with_none() -> None:
    for side in ("model", "attack"):
        assert between(run("x", GOOD), side, unit="volume", empty="one").empty  # type: ignore[arg-type]
        assert ranks(run("x", GOOD), side, unit="volume", empty="one").empty  # type: ignore[arg-type]


def test_a_difference_of_models_is_that_of_their_tables() -> None:
    table = between(models(), "model", unit="volume", empty="one").iloc[0]
    pairs = pd.DataFrame({"group": [f"p{n}" for n in range(7)], "unit": 0, "cls": "a"})
    pairs = pairs.assign(old=[good - 0.05 for good in GOOD])  # the mean over both organs
    alone = change(pairs.assign(difference=[bad - good for bad, good in zip(BAD, GOOD, strict=True)]))
    assert (table["low"], table["high"]) == pytest.approx((alone.low, alone.high))


def test_attacks_without_a_budget_are_compared_with_each_other() -> None:
    pair = [run("x", GOOD, attack="cw", eps=float("nan")), run("y", BAD, attack="dag", eps=float("nan"))]
    table = between(pd.concat([*pair, run("z", BAD)], ignore_index=True), "attack", unit="volume", empty="one")
    assert table[["new", "old"]].to_numpy().tolist() == [["dag bce", "cw bce"]]
