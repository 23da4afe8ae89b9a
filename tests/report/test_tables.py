"""Tables of runs: one average per measure, flags beside numbers, models and cases told apart, whole labels."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import medattack
from helpers.runs import dice_of, edit, worse, write_run
from rich.console import Console

import medseg_attack
from medseg_attack.report.colours import organ_colours
from medseg_attack.report.curve import curve
from medseg_attack.report.page.content import panels
from medseg_attack.report.page.templates import breakable
from medseg_attack.report.sheet import (
    Sheet,
    each_caption_once,
    fits,
    from_to,
    from_to_signed,
    latex,
    markdown,
    rich_table,
    signed,
)
from medseg_attack.report.tables.attacks import attack_sheet
from medseg_attack.report.tables.comparison import compare_sheet
from medseg_attack.report.tables.scores import score_sheet
from medseg_attack.report.tables.summaries import organs
from medseg_attack.runs.reading import read_runs
from medseg_attack.runs.rows import HEADER
from medseg_attack.stats.scores import scores, summary

PACKAGE = Path(medseg_attack.__file__).parent


def flag(code: str = "MA014", verdict: str = "invalid") -> dict[str, str]:
    words = {"about": "all runs", "title": "clean Dice is implausible", "seen": "0.1", "todo": "look at the model"}
    return {"code": code, "verdict": verdict, **words}


def compared(*words: object) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(medattack("compare", *words, "--json").stdout)
    return content


def table_of(folder: Path) -> Any:
    return summary(read_runs([folder]), unit="volume", empty="one", header=HEADER)


def test_a_measure_has_one_average_wherever_it_is_shown(tmp_path: Path) -> None:
    """Scans of 1 and of 9 slices: a distance stands on each slice, and counts once per scan."""
    dice = dice_of(0, 8)
    run = write_run(tmp_path, dice, slices=(1, 9))
    file = tmp_path / "scans.csv"
    content = compared(run, "--deltas", "--csv", file, "--fail-if", "adv_hd95_mm>999", "--fail-if", "adv_dice<0")
    right = {"hd95_mm": float((40 * (1 - dice)).mean()), "dice": float((np.round(dice * 4000) * 2 / 8000).mean())}
    (one,) = content["runs"]
    with file.open() as text:
        rows = list(csv.DictReader(text))
    table, _ = scores(read_runs([run]), unit="volume", empty="one")  # what evaluate shows
    assert {"adv_hd95_mm": one["adv_hd95_mm"], "mean_adv": one["mean_adv"]} == {
        "adv_hd95_mm": pytest.approx(right["hd95_mm"]),
        "mean_adv": pytest.approx(right["dice"]),
    }
    for name, value in right.items():
        assert np.mean([float(row[f"{name}_adv"]) for row in rows]) == pytest.approx(value)
        assert table[name].mean() == pytest.approx(value)
    assert [check["value"] for check in content["gate"]["checks"]] == pytest.approx(list(right.values()))
    medattack("compare", run, "--csv", file)
    with file.open() as text:
        (line,) = csv.DictReader(text)
    assert float(line["adv_hd95_mm"]) == pytest.approx(right["hd95_mm"])
    assert f"{right['hd95_mm']:.1f}" in medattack("compare", run, "--deltas").stdout


@pytest.mark.parametrize("form", [[], ["--markdown"], ["--latex"]])
def test_flags_title_and_doubts_stand_in_every_form(tmp_path: Path, form: list[str]) -> None:
    write_run(tmp_path, dice_of(0, 8), flags=[flag()])
    write_run(tmp_path, dice_of(0, 8), eps=0.02, checks=False)
    text = " ".join(medattack("compare", tmp_path, *form).stdout.replace("\\_", "_").split())
    for words in (
        "MA014 invalid",
        "clean Dice is implausible",
        "unet",
        "norm linf, data toy, split test",
        "NOT CHECKED: 1 of 2 runs",
    ):
        assert words in text


def test_every_row_of_csv_has_the_codes_of_its_flags(tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8), flags=[flag(), flag("MA029", "note")])
    write_run(tmp_path, dice_of(0, 8), eps=0.02, flags=[])
    for words in ([], ["--deltas"]):
        medattack("compare", tmp_path, *words, "--csv", tmp_path / "table.csv")
        with (tmp_path / "table.csv").open() as text:
            assert {(row["eps"], row["flags"]) for row in csv.DictReader(text)} == {
                ("0.01", "MA014 MA029"),
                ("0.02", ""),
            }


def test_runs_of_unlike_cases_are_called_so(tmp_path: Path) -> None:
    write_run(tmp_path / "8", dice_of(0, 4))
    write_run(tmp_path / "12", dice_of(0, 6), eps=0.02, config={"cases": "e" * 64})
    text = " ".join(medattack("compare", tmp_path).stdout.split())
    assert "UNLIKE: the runs are of different cases" in text
    assert "8 to 12 volumes of 4 to 6 patients" in text
    assert "volumes" in medattack("compare", tmp_path).stdout.splitlines()[2:6].__str__()
    assert "UNLIKE" not in medattack("compare", tmp_path / "8").stdout


def test_models_of_one_name_are_told_apart_in_every_output(tmp_path: Path) -> None:
    for weights, by in (("a", 0.0), ("b", 0.1)):
        write_run(tmp_path, worse(dice_of(0, 8), by), weights=weights, flags=[flag("MA029", "note")])
    text = medattack("compare", tmp_path, "--deltas", "--paired", "model", "--plot", tmp_path / "curve.svg").stdout
    for model in ("unet-a", "unet-b"):
        assert f"{model} clean" in " ".join(text.split())
        assert f"{model}, all runs" in " ".join(text.split())
    content = compared(tmp_path, "--paired", "model", "--fail-if", "adv_dice<0@model=unet")
    assert {run["model"] for run in content["runs"]} == {"unet-a", "unet-b"}
    assert {check["model"] for check in content["gate"]["checks"]} == {"unet-a", "unet-b"}
    assert (content["paired"][0]["new"], content["paired"][0]["old"]) == ("unet-b", "unet-a")


def test_a_line_of_the_plot_is_one_model_and_its_legend_covers_no_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weights, by in (("a", 0.0), ("b", 0.1)):
        for eps in (0.01, 0.02):
            write_run(tmp_path, worse(dice_of(0, 8), by + eps), weights=weights, eps=eps)
    write_run(tmp_path, dice_of(0, 8), loss="shift", eps=3.0, ball="rigid(eps=3.0)", unit="mm")
    figures: list[Any] = []
    monkeypatch.setattr("medseg_attack.report.curve.save", lambda figure, _: figures.append(figure))
    curve(table_of(tmp_path), tmp_path / "curve.png")
    window, millimetres = figures[0].axes
    assert [len(line.get_xdata()) for line in window.lines] == [3, 3]
    assert millimetres.get_xlabel() == "eps in mm"
    assert [len(line.get_xdata()) for line in millimetres.lines] == [2]
    assert window.get_legend() is None
    (legend,) = figures[0].legends
    assert len(legend.get_texts()) == 3
    figures[0].canvas.draw()
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figures[0].axes)


def test_budgets_with_a_unit_are_one_line_on_an_axis_of_that_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fractions of the window they differ from scan to scan, and their mean is the budget of no scan."""
    for eps, text in ((0.02, "5HU"), (0.04, "10HU"), (0.01, "1%window"), (0.1, "1sigma"), (0.02, "0.02")):
        attack = "fgsm" if text == "0.02" else f"fgsm {text}"
        ball = f"linf(eps={text})"
        run = write_run(tmp_path, worse(dice_of(0, 8), eps), eps=eps, attack=attack, ball=ball, loss=text)
        edit(run / "run.json", loss="bce")
    figures: list[Any] = []
    monkeypatch.setattr("medseg_attack.report.curve.save", lambda figure, _: figures.append(figure))
    table = table_of(tmp_path)
    curve(table, tmp_path / "curve.png")
    drawn = {axes.get_xlabel(): [list(line.get_xdata()) for line in axes.lines] for axes in figures[0].axes}
    expected = {
        "eps in HU": [[0, 5, 10]],
        "eps in 1/255 of the intensity window": [pytest.approx([0, 2.55, 5.1])],
        "eps in standard deviations of the image's own noise": [[0, 1]],
    }
    assert drawn == expected
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["fgsm bce"]
    points = {panel.axis: sorted({point["x"] for point in panel.points}) for panel in panels(table)}
    assert points == {axis: line for axis, (line,) in expected.items()}


@pytest.mark.parametrize("n_lines", [2, 4])
def test_intervals_of_many_lines_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_lines: int
) -> None:
    """Bands of more than two lines lie over each other until none can be read."""
    for n in range(n_lines):
        for eps in (1 / 255, 2 / 255, 4 / 255):
            write_run(tmp_path, worse(dice_of(0, 8), 0.05 * n), loss=f"loss{n}", eps=eps)
    figures: list[Any] = []
    monkeypatch.setattr("medseg_attack.report.curve.save", lambda figure, _: figures.append(figure))
    table = table_of(tmp_path)
    curve(table, tmp_path / "curve.png")
    (axes,) = figures[0].axes
    assert len(axes.collections) == n_lines
    if n_lines == 2:
        return
    bars = np.array([[segment[:, 0] for segment in bar.get_segments()] for bar in axes.collections])[:, :, 0]
    assert np.unique(bars.round(9)).size == bars.size
    assert np.abs(bars - [1, 2, 4]).max() <= 0.25 + 1e-9  # nearer to their own budget than to the next
    ends = [segment[:, 1] for bar in axes.collections for segment in bar.get_segments()]
    assert np.sort(np.array(ends)[:, 0]) == pytest.approx(np.sort(table["low"]))
    assert np.sort(np.array(ends)[:, 1]) == pytest.approx(np.sort(table["high"]))


@pytest.mark.parametrize("field", ["eps_unit", "unit"])  # the latter is of older runs
def test_a_budget_is_shown_with_its_unit(tmp_path: Path, field: str) -> None:
    write_run(tmp_path, dice_of(0, 8), eps=0.0125, ball="linf(eps=5HU)")
    write_run(tmp_path, dice_of(0, 8), eps=0.3, ball="bias(eps=0.3)", loss="bias", **{field: "field strength"})
    table = attack_sheet(table_of(tmp_path), unit="volume", empty="one")
    assert [row[2] for row in table.rows] == ["", "0.3", "5HU"] or [row[2] for row in table.rows] == ["", "5HU", "0.3"]
    assert "eps: of fgsm in field strength." in table.caption


def test_one_run_with_a_goal_hides_no_share_of_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8))
    write_run(tmp_path, dice_of(0, 8), eps=0.02)
    frame = table_of(tmp_path)
    frame.loc[1, ["success", "success_of_clean", "success_on_truth", "least", "goal_dice"]] = [0.5, 0.0, 0.6, 0.01, 0.7]
    heads = attack_sheet(frame, unit="volume", empty="one").columns
    assert {"rel. drop", "< half", "missed", "success", "goal Dice"} <= set(heads)
    frame.loc[0, ["success", "success_of_clean", "goal_dice"]] = [0.5, 0.0, 0.7]
    assert "missed" not in attack_sheet(frame, unit="volume", empty="one").columns


def test_labels_break_between_words_and_organs_give_way() -> None:
    words = ["pgd(steps=10, objective=bce) within ring:10mm", "dice_focal(gamma=2)"]
    sheet = Sheet("", ["attack", "loss", *(f"organ_{i}" for i in range(9))], [[*words, *["0.123"] * 9]], left=2)
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as capture:
        console.print(rich_table(sheet))
    lines = capture.get().split("\n")
    assert max(map(len, lines)) <= 100
    parts = {part for line in lines for part in line.split()}
    assert {"pgd(steps=10,", "objective=bce)", "within"} <= parts or {"pgd(", "steps=10,"} <= parts
    assert fits(sheet)
    assert not fits(Sheet("", ["a", *"bcdefghij"], [["x", *["1" * 12] * 9]]))


GATE = ["--fail-if", "adv_dice<0.01"]


def test_the_gate_fails_what_a_flag_calls_invalid(tmp_path: Path) -> None:
    run = write_run(tmp_path, dice_of(0, 8), flags=[flag()])
    gate = json.loads(medattack("compare", run, *GATE, "--json", code=1).stdout)["gate"]
    assert [(check["rule"], check["failed"], check["flags"]) for check in gate["checks"]] == [
        ("adv_dice<0.01", False, []),
        ("flag=invalid", True, ["MA014"]),
    ]
    assert "flag=invalid" in medattack("compare", run, *GATE, "--junit", tmp_path / "gate.xml", code=1).stdout
    medattack("compare", run, *GATE, "--fail-if", "flag=MA007")  # a rule on flags takes the place of the usual one
    medattack("compare", run, "--fail-if", "flag=MA014", code=1)
    medattack("compare", run, "--fail-if", "flag=note@attack=fgsm")


def test_a_flag_of_the_reference_counts_too_and_unchecked_runs_are_refused(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", dice_of(0, 8), flags=[flag()])
    new = write_run(tmp_path / "new", dice_of(0, 8), weights="b", flags=[])
    medattack("compare", new, "-r", old, *GATE, code=1)
    edit(old / "run.json", checks=False, flags=None)
    header = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({key: value for key, value in header.items() if key != "flags"}))
    medattack("compare", new, "-r", old, *GATE)
    assert "--no-checks" in medattack("compare", new, "-r", old, "--fail-if", "flag=invalid", code=2).stderr


def test_a_control_is_no_comparison(tmp_path: Path) -> None:
    for side, weights, by in (("old", "a", 0.0), ("new", "b", 0.1)):
        write_run(tmp_path / side, worse(dice_of(0, 8), by), weights=weights)
        write_run(tmp_path / side, dice_of(0, 8), weights=weights, loss="", attack="noise", role="control", eps=0.02)
    words = [tmp_path / "new", "-r", tmp_path / "old", "--fail-if", "dice_drop>0.02@sig", "--json"]
    content = json.loads(medattack("compare", *words, code=1).stdout)
    (check,) = content["gate"]["checks"]
    assert check["attack"] == "fgsm"
    tests = {one["attack"]: (one["p"], one["p_holm"]) for one in content["changes"] if one["organ"] == "mean"}
    assert tests["fgsm"][0] == tests["fgsm"][1]
    assert tests["noise"][1] is None
    medattack("compare", tmp_path / "new", "--fail-if", "adv_dice<0.9@attack=noise", code=1)


def test_the_remedy_for_too_few_patients_is_possible(tmp_path: Path) -> None:
    few = write_run(tmp_path / "few", dice_of(0, 4))
    message = " ".join(medattack("compare", few, "--fail-if", "adv_dice<0.5@sig", code=2).stderr.split())
    assert "expected 6 patients or more" in message
    assert "attack more patients" in message
    assert "narrow" not in message


def test_runs_of_one_name_are_told_apart_by_their_models_and_each_has_a_mean(tmp_path: Path) -> None:
    """Means of Dice are those of the organs of a run, not of all rows."""
    levels = {"a": 0.8, "b": 0.4}
    for weights, level in levels.items():
        write_run(tmp_path, np.full((6, 1, 3), level) + np.array([0, 0.1, 0.2]), weights=weights)
    table, _ = scores(read_runs([tmp_path]), unit="volume", empty="one")
    sheet = score_sheet(table, unit="volume", empty="one")
    means = {row[0]: row[2] for row in sheet.rows if row[1] == "mean"}
    assert means == {f"unet-{weights}/fgsm_bce_0.01": f"{level + 0.1:.3f}" for weights, level in levels.items()}
    assert [row[1] for row in sheet.rows] == 2 * ["large_bowel", "small_bowel", "stomach", "mean"]
    replay = "replay(run='/there/unet-c/01_fgsm of two', content='0')"
    sheet = score_sheet(table.assign(attack=replay).iloc[:3], unit="volume", empty="one")
    assert ("stored images" in sheet.title, sheet.columns[0]) == (True, "organ")
    both = table.assign(attack=[replay] * 3 + [replay.replace("01", "02")] * 3)
    rows = score_sheet(both, unit="volume", empty="one").rows
    assert {row[0] for row in rows} == {"01_fgsm of two", "02_fgsm of two"}


def cells(sheet: Sheet, head: str) -> list[str]:
    """A column of a table."""
    return [row[list(sheet.columns).index(head)] for row in sheet.rows]


def test_a_score_has_its_interval_and_its_spread_over_patients(tmp_path: Path) -> None:
    """Clean Dice of 0.9 everywhere: an interval around it and no spread; under attack those of the patients' means."""
    dice = dice_of(0, 8)
    write_run(tmp_path, dice)
    table = table_of(tmp_path)
    (one,) = table.to_dict("records")
    assert one["sd"] == pytest.approx(dice.mean(axis=(1, 2)).std(ddof=1), abs=1e-4)
    assert one["sd_of_clean"] == pytest.approx(0, abs=1e-12)
    assert one["low_of_clean"] < 0.9 < one["high_of_clean"]
    compared_sheet = compare_sheet(table, ["model"], sort="by", unit="volume", empty="one")
    assert cells(compared_sheet, "SD") == [f"{one['sd']:.3f}"]
    clean, attacked = cells(attack_sheet(table, unit="volume", empty="one"), "95 % CI")
    assert clean == f"{one['low_of_clean']:.2f}-{one['high_of_clean']:.2f}"
    assert attacked == f"{one['low']:.2f}-{one['high']:.2f}"


def test_a_terminal_has_room_for_some_organs_and_a_document_for_all(tmp_path: Path) -> None:
    names = [f"organ_{k}" for k in range(9)]
    write_run(tmp_path, np.linspace(0.1, 0.9, 4 * 9).reshape(4, 1, 9), organs=names)
    shown = " ".join(medattack("compare", tmp_path).stdout.split())
    assert "with smaller drops; --csv and --json have all" in shown
    for form in ("--markdown", "--latex"):
        text = medattack("compare", tmp_path, form).stdout.replace("\\_", "_")
        assert all(name in text for name in names)
        assert "Not shown" not in text


def test_rows_of_organs_have_their_own_intervals(tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8))
    table = table_of(tmp_path)
    sheet = compare_sheet(table, ["organ"], sort="by", unit="volume", empty="one")
    (one,) = table.to_dict("records")
    for organ, text in zip(cells(sheet, "organ"), cells(sheet, "95 % CI"), strict=True):
        assert text == f"{one[f'{organ}_low']:.2f}-{one[f'{organ}_high']:.2f}"


def test_what_evaluate_shows_has_intervals_of_organs_and_of_their_mean(tmp_path: Path) -> None:
    dice = dice_of(0, 8)
    run = write_run(tmp_path, dice)
    table, _ = scores(read_runs([run]), unit="volume", empty="one")
    sheet = score_sheet(table, unit="volume", empty="one")
    (one,) = table_of(tmp_path).to_dict("records")
    spread = [dice[:, :, i].mean(axis=1).std(ddof=1) for i in range(3)] + [dice.mean(axis=(1, 2)).std(ddof=1)]
    assert [float(text) for text in cells(sheet, "SD")] == pytest.approx(spread, abs=2e-3)
    wanted = [f"{one[f'{organ}_low']:.2f}-{one[f'{organ}_high']:.2f}" for organ in cells(sheet, "organ")[:-1]]
    assert cells(sheet, "95 % CI") == [*wanted, f"{one['low']:.2f}-{one['high']:.2f}"]
    assert list(sheet.columns)[:5] == ["organ", "dice", "95 % CI", "SD", "iou"]


@pytest.mark.parametrize("width", range(40, 101, 10))
def test_the_head_of_an_interval_is_never_broken(width: int, tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8), organs=("left lung", "right lung", "heart"))
    for sheet in (
        compare_sheet(table_of(tmp_path), ["model", "attack"], sort="by", unit="volume", empty="one"),
        Sheet("t", ["a", "95 % CI", "< half"], [["long words " * 9, "", ""]] * 2),  # of numbers that are not there
    ):
        if fits(sheet, width):
            console = Console(width=width, file=io.StringIO(), force_terminal=False)
            console.print(rich_table(sheet, width))
            shown = console.file.getvalue()  # type: ignore[attr-defined]
            assert "95 % CI" in shown
            assert "< half" in shown


def test_groups_of_rows_stand_apart(tmp_path: Path) -> None:
    for model, eps in (("b", 0.01), ("a", 0.01), ("b", 0.02), ("a", 0.02)):
        write_run(tmp_path, dice_of(0, 8), model=model, weights=model, eps=eps)
    table = table_of(tmp_path)
    sheet = compare_sheet(table, ["eps", "model"], sort="by", unit="volume", empty="one")
    assert cells(sheet, "eps") == ["0.01", "0.01", "0.02", "0.02"]
    assert sheet.rules == {1}
    assert latex(sheet).count(r"\midrule") == 2  # below the head and between the groups
    assert compare_sheet(table, ["model"], sort="adv", unit="volume", empty="one").rules == frozenset()


def test_deltas_follow_the_order_of_the_table(tmp_path: Path) -> None:
    for model, eps in (("b", 0.02), ("b", 0.01), ("a", 0.02), ("a", 0.01)):
        write_run(tmp_path, dice_of(0, 8), model=model, weights=model, eps=eps, organs=("liver", "spleen", "kidney"))

    def runs(by: str) -> list[str]:
        text = medattack("compare", tmp_path, "--by", by, "--deltas", "--markdown").stdout.partition("Clinical deltas")[
            2
        ]
        return [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| liver")]

    assert runs("model,eps") == ["a clean", "a fgsm bce 0.01", "a fgsm bce 0.02", "b clean", *runs("model,eps")[4:]]
    first = ["a clean", "b clean", "a fgsm bce 0.01", "b fgsm bce 0.01", "a fgsm bce 0.02", "b fgsm bce 0.02"]
    assert runs("eps,model") == first


def test_labels_stand_for_names_everywhere(tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8), model="unet_small")
    words = ("--label", "unet_small=U-Net, 32 channels", "--label", "fgsm=FGSM")
    for form in ([], ["--latex"], ["--markdown"], ["--deltas"], ["--json"]):
        text = " ".join(medattack("compare", tmp_path, *words, *form).stdout.split())
        assert "U-Net, 32 channels" in text.replace("U\\-Net", "U-Net")
        assert "FGSM" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "unnet=U-Net"], "did you mean unet?"),
        (["--label", "unet"], "expected --label NAME=TEXT"),
        (["--label", "unet="], "expected --label NAME=TEXT"),
        (["--label", "unet=U-Net", "--fail-if", "adv_dice<0.5"], "drop the labels"),
        (["--label", "unet=U-Net", "--save-as", "main"], "drop the labels"),
    ],
)
def test_labels_of_nothing_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8))
    assert message in " ".join(medattack("compare", tmp_path, *words, code=2).stderr.split())


@pytest.mark.parametrize("by", [["model"], ["organ"]])
def test_an_organ_has_its_colour_of_the_page_in_the_terminal(by: list[str], tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 3))
    table = table_of(tmp_path)
    sheet = compare_sheet(table, by, sort="by", unit="volume", empty="one")
    console = Console(force_terminal=True, color_system="truecolor", width=100, file=io.StringIO())
    console.print(rich_table(sheet))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for organ, colour in organ_colours(organs(table)).items():
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        words = " ".join(re.findall(rf"38;2;{red};{green};{blue}m(\w+)", text))
        assert words.replace("_", " ") == organ.replace("_", " ")


def test_a_change_that_is_rounded_to_nothing_has_no_minus() -> None:
    assert (signed(-0.0004), signed(-0.04, 1), from_to(-0.0001, 0.2)) == ("+0.000", "+0.0", "0.000 to 0.200")
    assert from_to_signed(-0.0001, -0.2) == "+0.000 to -0.200"
    tables = [path for folder in ("report", "gate") for path in (PACKAGE / folder).rglob("*.py")]
    assert [path.name for path in tables if re.search(r":\+\.\d", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("length", [60, 200])
def test_a_title_is_not_broken_by_a_narrow_table_and_is_whole(length: int) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rich_table(Sheet("t" * length, ["a"], [["1"]])))
    text = console.export_text()
    assert text.count("t") == length
    assert max(map(len, text.splitlines())) <= 100
    assert (f"{'t' * 60}\n" in f"{text.splitlines()[0].rstrip()}\n") == (length == 60)


def test_no_line_of_a_caption_ends_between_a_number_and_its_unit() -> None:
    words = "that 60 % of all fail, p < 0.05, at 12 mm and 3 s, 5 HU"
    for width in range(10, 40):
        sheet = Sheet("t", ["a" * width], [["1"]], caption=words)
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(rich_table(sheet))
        lines = [line.strip() for line in console.export_text().splitlines()]
        shown = lines[lines.index("1") + 1 :]
        assert " ".join(" ".join(shown).split()) == words
        assert not any(re.search(r"(^| )(\d+|[<>])$|^[<>%]", line) for line in shown if line), width
        assert max(map(len, shown)) <= width + 2


def test_a_caption_that_stands_above_is_not_repeated() -> None:
    above = {"one"}
    sheets = [Sheet("t", ["a"], [], caption=caption) for caption in ("one", "two", "two")]
    assert [sheet.caption for sheet in each_caption_once(sheets, above)] == ["", "two", ""]
    assert above == {"one", "two"}


def test_a_number_stays_with_its_unit_in_every_caption() -> None:
    sheet = Sheet("t", ["a"], [["1"]], "rule out that 60 % fail, 5 mm, p < 0.05")
    assert "60\u00a0% fail, 5\u00a0mm, p\u00a0&lt;\u00a00.05" in markdown(sheet)
    assert r"60~\% fail, 5~mm, p~" in latex(sheet)
    assert "60\u00a0% fail, 5\u00a0mm, p\u00a0&lt;\u00a00.05" in breakable(sheet.caption)
