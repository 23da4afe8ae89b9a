"""The summary of many runs, read one after the other, is that of all their rows at once, to the last bit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from medseg_attack.errors import InputError
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.rows import HEADER
from medseg_attack.stats import scores
from medseg_attack.stats.patients import deviation, interval
from medseg_attack.stats.scores import AIMED, MEAN, Unit, aimed, by_organ, pooled, read_summary, scans, scored, success

SETTINGS = {  # columns of a run beside its counts, and its organs
    "fgsm": ([], ("liver", "spleen")),
    "pgd": (["hd95_mm_clean", "hd95_mm_adv"], ("liver", "spleen", "mean")),
    "noise": (["nsd_clean", "nsd_adv"], ("spleen",)),
    "cw": (["success", "success_of_clean", "success_on_truth", "n_goal", "hit_goal"], ("liver", "spleen")),
}


def random_part(draw: np.random.Generator, scan: int, columns: list[str], organs: tuple[str, ...]) -> pa.Table:
    """Rows of one scan of five slices, some without an organ."""
    n = 5 * len(organs)
    counts = {name: draw.integers(0, 400, n) * (draw.random(n) < 0.7) for name in ("n_target", "n_clean", "n_adv")}
    hits = {f"hit_{when}": np.minimum(counts["n_target"], counts[f"n_{when}"]) // 2 for when in ("clean", "adv")}
    flags = {name: (draw.random(5) < 0.5).repeat(len(organs)).astype(float) for name in columns if "success" in name}
    extra = {name: np.where(draw.random(n) < 0.2, np.nan, draw.random(n)) for name in columns} | flags
    return pa.table(
        {
            "case": np.repeat([f"s{scan}_{i}" for i in range(5)], len(organs)),
            "volume": np.repeat(f"s{scan}", n),
            "group": np.repeat(f"p{scan // 2}", n),
            "cls": np.tile(organs, 5),
            **counts,
            **hits,
            "size": draw.random(n),
            "linf": draw.random(n),
            "forwards": draw.integers(0, 30, n),
            "backwards": draw.integers(0, 30, n),
            "n_target_adv": counts["n_target"],
            "z_adv": draw.integers(0, 30, n),
            **extra,
        }
    )


def write_runs(folder: Path, dims: int = 2) -> None:
    draw = np.random.default_rng(0)
    for i, (name, (columns, organs)) in enumerate(SETTINGS.items()):
        path = folder / f"unet-{i % 2}" / f"{i:02d}_{name}"
        run = RunFolder.open(path, {"attack": name, "weights": str(i), "data": "d", "cases": "c"})
        for scan in range(6):
            run.write_table(scan, random_part(draw, scan, columns, organs), 1.0, 4)
        facts = {"model": "unet", "attack": name, "loss": "", "eps": None if i == 1 else 0.01 * i, "cases": 30}
        run.finish(facts | {"dims": dims, "data": "random", "split": "test", "seconds": 0.1} | ({"x": 1} if i else {}))


def all_at_once(rows: pd.DataFrame, unit: Unit, empty: str) -> pd.DataFrame:
    """The summary as it was computed from all rows together."""
    cases = scored(pooled(rows, unit), empty)
    measured = {
        f"{when}_{name}": by_organ(scans(rows), f"{name}_{when}")[MEAN]
        for name in scores.measures(rows)
        for when in ("clean", "adv")
    }
    dice = {when: by_organ(cases, f"dice_{when}") for when in ("clean", "adv")}
    table = []
    for run, of_run in cases.groupby("run", sort=False):
        of_rows = rows[rows["run"] == run]
        row = {"run": run} | of_rows.iloc[0][[name for name in HEADER if name in rows]].to_dict()
        row |= {f"{organ}_{when}": dice[when].loc[run, organ] for when in dice for organ in dice[when].columns}
        for organ in dict.fromkeys(of_run["cls"]):
            row[f"{organ}_low"], row[f"{organ}_high"] = interval(of_run[of_run["cls"] == organ], "dice_adv")
        for score, ending in (("dice_adv", ""), ("dice_clean", "_of_clean")):
            row[f"low{ending}"], row[f"high{ending}"] = interval(of_run, score)
            row[f"sd{ending}"] = deviation(of_run, score)
        row["drop"] = row["mean_clean"] - row["mean_adv"]
        row |= success(of_run)
        row |= {"linf": of_rows["linf"].max()} | {name: of_rows[name].mean() for name in ("forwards", "backwards")}
        row |= {name: column.get(run, np.nan) for name, column in measured.items()}
        row |= scores._measure_intervals(scans(rows)[scans(rows)["run"] == run])
        row |= {"cases": of_run["unit"].nunique(), "patients": of_run["group"].nunique()} | aimed(of_rows, unit)
        row |= {"verified": False, "touched": int(of_run["touched"].sum()), "entries": len(of_run)}
        table.append(row)
    return pd.DataFrame(table)


@pytest.mark.parametrize("at_once", [0, 100, 10**6])
@pytest.mark.parametrize("unit", ["slice", "volume", "patient"])
@pytest.mark.parametrize("empty", ["one", "nan"])
def test_runs_read_one_after_the_other_have_the_summary_of_all_rows(
    unit: Unit, empty: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "AT_ONCE", at_once)
    write_runs(tmp_path)
    rows = read_runs([tmp_path])
    expected = all_at_once(rows, unit, empty)
    table, runs = read_summary([tmp_path], unit=unit, empty=empty, header=HEADER)
    pd.testing.assert_frame_equal(table, expected, check_exact=True, check_like=True)
    whole = scores.summary(rows, unit=unit, empty=empty, header=HEADER)
    pd.testing.assert_frame_equal(table, whole, check_exact=True)
    assert table.loc[table["attack"] == "cw", list(AIMED)].notna().all(axis=None)
    first = rows.drop_duplicates("run").set_index("run")
    pd.testing.assert_series_equal(runs.set_index("run")["model"], first["model"], check_exact=True)


def test_a_run_of_scans_is_refused_for_slices(tmp_path: Path) -> None:
    write_runs(tmp_path, dims=3)
    with pytest.raises(InputError, match="expected --unit volume or patient for a 3-D model"):
        read_summary([tmp_path], unit="slice", empty="one")


def test_each_row_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one run are not looked for among those of all: n runs would take n²."""
    write_runs(tmp_path)
    counts: list[int] = []

    def counted(rows: pd.DataFrame, unit: Unit) -> scores.Condensed:
        counts.append(len(rows))
        return condensed(rows, unit)

    condensed = scores.condensed
    monkeypatch.setattr(scores, "condensed", counted)
    monkeypatch.setattr(scores, "AT_ONCE", 0)
    of_runs = read_runs([tmp_path])["run"].value_counts()
    read_summary([tmp_path], unit="volume", empty="one")
    assert sorted(counts) == sorted(of_runs)
