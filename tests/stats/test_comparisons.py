"""Comparisons of many runs: each is read once, and all of them are scored and paired in one pass."""

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.command import medattack
from helpers.runs import dice_of, worse, write_run

from medseg_attack.gate import verdicts
from medseg_attack.runs.folder import RunFolder
from medseg_attack.stats import comparisons


def sides(folder: Path, n: int) -> tuple[Path, Path]:
    """Folders of n new runs, and of n runs of a reference."""
    new, old = folder / f"{n} new", folder / f"{n} old"
    for i in range(n):
        write_run(old, dice_of(i, 8), loss=f"l{i}")
        write_run(new, worse(dice_of(i, 8), 0.1), loss=f"l{i}", weights="b")
    return new, old


def test_more_runs_are_not_more_passes_over_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for module in (comparisons, verdicts):
        for name in ("pooled", "scored", "paired"):
            function = getattr(module, name)
            counted = lambda *a, function=function, name=name, **k: (calls.update([name]), function(*a, **k))[1]  # noqa: E731
            monkeypatch.setattr(module, name, counted)
    rows = RunFolder.rows
    monkeypatch.setattr(RunFolder, "rows", lambda run: (calls.update(["rows"]), rows(run))[1])
    counts = []
    for n in (1, 4):
        calls.clear()
        new, old = sides(tmp_path, n)
        rules = ["--fail-if", "adv_dice<0.1", "--fail-if", "dice_drop>0.5@organ=stomach"]
        medattack("compare", new, "--reference", old, *rules)
        assert calls.pop("rows") == 2 * n
        counts.append(dict(calls))
    assert counts[0] == counts[1]


def test_a_run_of_the_reference_that_is_the_like_of_several_counts_once_for_each(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", dice_of(0, 8), slices=(2, 3))
    new = [write_run(tmp_path / w, worse(dice_of(0, 8), 0.1), weights=w, slices=(2, 3)) for w in "bc"]
    gate = ["--fail-if", "dice_drop>0.5", "--json"]
    each = [json.loads(medattack("compare", run, "--reference", old, *gate).stdout) for run in new]
    both = json.loads(medattack("compare", *new, "--reference", old, *gate).stdout)
    numbers = ("adv_old", "adv_new", "mean", "low", "high", "p", "n")
    for alone, among in zip(
        [change for content in each for change in content["changes"]], both["changes"], strict=True
    ):
        assert {key: alone[key] for key in numbers} == {key: among[key] for key in numbers}
    values = [check["value"] for content in each for check in content["gate"]["checks"]]
    assert [check["value"] for check in both["gate"]["checks"]] == values
