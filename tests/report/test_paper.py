"""Figures and tables for papers: their numbers are those of `compare --json`, and names are text in them."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from helpers.attacked import write_attacked
from helpers.command import medattack
from helpers.runs import dice_of, write_run
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from medseg_attack.report.curve import curve as plot_curve
from medseg_attack.report.page.charts import charts
from medseg_attack.report.page.content import Tables, tables
from medseg_attack.report.paper.drawings import (
    DRAWINGS,
    Drawing,
    curves,
    heatmap,
    paper_style,
    profile,
    survival,
    tradeoff,
    transfer,
    visibility,
)
from medseg_attack.runs.reading import read_runs

ORGANS = ("liver", "spleen")
TRICKY = [r"a_b$c$", "50 %", r"\input{x}", "<i>", "[red]", "日本"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models under an attack at two budgets and a control, one of them also on the other's images."""
    root = tmp_path_factory.mktemp("runs")
    for i, (model, weights) in enumerate((("unet", "a"), ("fpn", "b"))):
        for eps in (0.01, 0.02):
            dice = dice_of(i, 7)[:, :, :2] - 10 * eps
            write_run(root, dice, model=model, weights=weights, eps=eps, organs=ORGANS)
        control = {"role": "control", "attack": "noise", "loss": "noise"}
        write_run(root, dice_of(i, 7)[:, :, :2], model=model, weights=weights, eps=0.02, organs=ORGANS, **control)
    foreign = {"attack": "transfer(surrogate='models/unet')", "loss": "transfer"}
    write_run(root, dice_of(3, 7)[:, :, :2], model="fpn", weights="b", eps=0.02, organs=ORGANS, **foreign)
    return root


@pytest.fixture(scope="module")
def compared(runs: Path) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(medattack("compare", runs, "--json").stdout)["runs"]
    return result


@pytest.fixture(scope="module")
def of(runs: Path) -> Tables:
    return tables(read_runs([runs]), unit="volume", empty="one")


def test_every_kind_is_drawn_as_wide_as_a_column(runs: Path, tmp_path: Path) -> None:
    for kind in DRAWINGS:
        medattack("figure", kind, runs, "--out", tmp_path / f"{kind}.png", "--width", 100)
        with Image.open(tmp_path / f"{kind}.png") as image:
            assert image.size[0] == pytest.approx(100 / 25.4 * 150, abs=1.5)  # at 150 pixels per inch
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_fonts_are_inside_the_file(runs: Path, tmp_path: Path) -> None:
    medattack("figure", "heatmap", runs, "--out", tmp_path / "a.pdf")
    assert b"/FontFile2" in (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()
    medattack("figure", "heatmap", runs, "--out", tmp_path / "a.svg")
    assert "<text" not in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_curves_are_the_numbers_of_compare(of: Tables, compared: list[dict[str, Any]]) -> None:
    drawn = [
        sorted(tuple(line.get_ydata()[1:]) for line in axes.lines if len(line.get_ydata()) == 3)
        for axes in curves(of, 180).axes
        if axes.lines
    ]
    expected = [
        sorted([tuple(run[f"{organ}_adv"] for run in compared if run["model"] == model and run["attack"] == "fgsm")])
        for model in ("fpn", "unet")
        for organ in ("mean", *ORGANS)
    ]
    assert drawn == expected


def test_budgets_in_another_unit_have_rows_of_their_own(tmp_path: Path) -> None:
    for eps, ball in ((0.02, ""), (0.0125, "linf(eps=5HU)"), (0.025, "linf(eps=10HU)")):
        write_run(tmp_path / "runs", dice_of(0, 5), eps=eps, ball=ball)
    write_run(tmp_path / "runs", dice_of(0, 5), eps=0.04, model="fpn", weights="b")
    drawn = curves(tables(read_runs([tmp_path / "runs"]), unit="volume", empty="one"), 180)
    parts = {part._supxlabel.get_text(): part for part in drawn.subfigs}  # type: ignore[attr-defined]
    assert [*parts] == ["eps in 1/255 of the intensity window", "eps in HU"]
    ends = {
        axis: {tuple(line.get_xdata()) for axes in part.axes for line in axes.lines} for axis, part in parts.items()
    }
    assert ends["eps in HU"] == {(0.0, 5.0, 10.0)}
    assert {round(x[-1] / 255, 3) for x in ends["eps in 1/255 of the intensity window"]} == {0.02, 0.04}
    medattack("figure", "curves", tmp_path / "runs", "--out", tmp_path / "c.png", "--width", 180)


def test_the_interval_of_one_budget_is_drawn_on_every_chart_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A band over one budget has no width, so that most runs would show a mean without its interval."""
    write_run(tmp_path / "runs", dice_of(0, 4))
    of = tables(read_runs([tmp_path / "runs"]), unit="volume", empty="one")
    kept: list[Figure] = [curves(of, 88)]
    monkeypatch.setattr("medseg_attack.report.curve.save", lambda figure, _: kept.append(figure))
    plot_curve(of.summary, tmp_path / "c.png")
    low, high = of.summary[["low", "high"]].iloc[0]
    for figure in kept:
        bars = [bar for axes in figure.axes for each in axes.collections for bar in _bars(each)]
        assert any(np.allclose(sorted(bar), (low, high)) for bar in bars)
    for name, ends, value in (("curve", ("low", "high"), "adv"), ("certified", ("bottom", "top"), "bound")):
        row = {"x": 1.0, "radius": 1.0, "chosen": True, "end": "low", "organ": "stomach", "model": "unet", value: 0.5}
        spec = charts({"stomach": "#000000"}, ["unet"])[name]
        points = [row | dict(zip(ends, (0.2, 0.9), strict=True))]
        drawn = vl_convert.vegalite_to_svg({**spec, "width": 99, "datasets": {"points": points}})
        marks = [each for each in ET.fromstring(drawn).iter() if "mark-rule role-mark" in each.get("class", "")]
        assert any(abs(float(line.get("y2", 0))) > 9 for mark in marks for line in mark), name


def _bars(collection: Any) -> list[list[float]]:
    """Lower and upper ends of the upright lines of a collection."""
    lines = collection.get_segments() if hasattr(collection, "get_segments") else []
    return [[line[0][1], line[1][1]] for line in lines if len(line) == 2]


def test_curves_of_runs_without_a_budget_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 5), eps=0.0, role="clean")
    said = medattack("figure", "curves", tmp_path / "runs", "--out", tmp_path / "c.png", code=2).stderr
    assert "expected a run with a budget to draw, got none" in said
    assert not (tmp_path / "c.png").exists()


def test_matrices_are_the_numbers_of_compare(of: Tables, compared: list[dict[str, Any]]) -> None:
    largest = [run for run in compared if run["eps"] == 0.02]
    values = heatmap(of, 88).axes[0].images[0].get_array()
    assert values is not None
    assert np.allclose(values, [[run[f"{organ}_adv"] for organ in ("mean", *ORGANS)] for run in largest], atol=1e-12)
    figure = transfer(of, 88)
    matrix = figure.axes[0].images[0].get_array()
    by_name = {(run["model"], run["attack"]): run["mean_adv"] for run in largest}
    foreign = by_name["fpn", "transfer(surrogate='models/unet')"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["fpn", "unet"]
    assert matrix is not None
    assert matrix[0][0] == by_name["fpn", "fgsm"]
    assert matrix[1].tolist() == [foreign, by_name["unet", "fgsm"]]
    assert np.isnan(np.ma.filled(matrix, np.nan)[0][1])


def test_a_tradeoff_has_a_marker_per_model_at_its_worst_run(of: Tables, compared: list[dict[str, Any]]) -> None:
    markers = [line for line in tradeoff(of, 88).axes[0].lines if line.get_marker() not in ("None", "_")]
    points = {(float(x), float(y)) for line in markers for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    for model in ("unet", "fpn"):
        worst = min(
            (run for run in compared if run["model"] == model and run["role"] == "attack"),
            key=lambda run: run["mean_adv"],
        )
        assert (worst["mean_clean"], worst["mean_adv"]) in points


def test_a_profile_falls_from_all_patients_to_none() -> None:
    t, share = survival([0.5, 0.25, 0.5, 1.0])
    assert (t[0], share[0], t[-1], share[-1]) == (0.0, 1.0, 1.0, 0.0)
    assert share == sorted(share, reverse=True)
    assert dict(zip(t[1:-2], share[1:-2], strict=True)) == {0.25: 1.0, 0.5: 0.75, 1.0: 0.25}


def test_a_profile_has_a_panel_per_model(of: Tables) -> None:
    titles = [axes.get_title() for axes in profile(of, 88).axes if axes.get_title()]
    assert titles == ["fpn: fgsm bce 0.02", "unet: fgsm bce 0.02"]


def test_a_table_has_the_numbers_of_compare_its_best_bold(
    runs: Path, compared: list[dict[str, Any]], tmp_path: Path
) -> None:
    medattack("figure", "table", runs, "--out", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    clean, attacked = text.split(r"\midrule")[1:]
    lines = [line for line in attacked.splitlines() if line.startswith(("unet &", "fpn &"))]
    assert len(lines) == len(compared)
    by_model = {run["model"]: run for run in compared}
    for line in clean.strip().splitlines():
        model, attack, loss, eps, mean, interval, *organs = (cell.strip(" \\") for cell in line.split("&"))
        run = by_model.pop(model)
        assert (attack, loss, eps) == ("clean", "", "")
        assert mean == f"bfseries {run['mean_clean']:.3f}"  # both models have the best
        assert interval == rf"$_{{{run['low_of_clean']:.2f}\text{{--}}{run['high_of_clean']:.2f}}}$"
        assert [cell.removeprefix("bfseries ") for cell in organs[::2]] == [f"{run[f'{o}_clean']:.3f}" for o in ORGANS]
    assert not by_model
    for line, run in zip(lines, compared, strict=True):
        cells = [cell.strip(" \\") for cell in line.split("&")]
        for n, organ in enumerate(("mean", *ORGANS)):
            low, high = (run[end if organ == "mean" else f"{organ}_{end}"] for end in ("low", "high"))
            assert cells[4 + 2 * n].removeprefix("bfseries ") == f"{run[f'{organ}_adv']:.3f}"
            assert cells[5 + 2 * n] == rf"$_{{{low:.2f}\text{{--}}{high:.2f}}}$"
            same = [
                other
                for other in compared
                if all(other[key] == run[key] for key in ("attack", "loss", "eps")) and run["role"] == "attack"
            ]
            is_best = len(same) > 1 and run[f"{organ}_adv"] == max(other[f"{organ}_adv"] for other in same)
            assert cells[4 + 2 * n].startswith("bfseries") == is_best


def test_a_table_tells_data_sets_and_norms_apart_and_compares_within_one(tmp_path: Path) -> None:
    for n, data in enumerate(("acdc", "phantom")):
        dice = dice_of(n, 7)
        config = {"attack": "pgd(l2(0.01))"}
        write_run(tmp_path / data, dice, data=data)
        write_run(tmp_path / data / "l2", dice - 0.1, data=data, attack="pgd", ball="l2(eps=0.01)", config=config)
    medattack("figure", "table", tmp_path, "--out", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert r"model & norm & data & attack & loss" in text
    lines = [line for line in text.splitlines() if line.startswith("unet &")]
    rows = [[cell.strip(" \\") for cell in line.split(" & ")] for line in lines]
    linf, l2 = (["linf", "fgsm", "bce"], ["l2", "pgd", "bce"])
    assert [row[1:5] for row in rows] == [
        *(["", data, "clean", ""] for data in ("acdc", "phantom")),
        *([norm, data, attack, loss] for data in ("acdc", "phantom") for norm, attack, loss in (l2, linf)),
    ]
    assert not any("bfseries" in cell for row in rows for cell in row)  # one attack in each ball, one ball in each set


def test_a_table_explains_no_column_that_it_lacks_and_brings_the_flags(tmp_path: Path) -> None:
    flag = {"code": "MA007", "title": "more steps would do more", "about": "fgsm bce", "seen": "by 0.1"}
    flag |= {"verdict": "upper bound on robustness", "todo": "raise steps_"}
    write_run(tmp_path / "runs", dice_of(0, 7), flags=[flag])
    medattack("figure", "table", tmp_path / "runs", "--out", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert not re.search(r"rel\. drop|missed|half", text)
    assert r"\par{\footnotesize MA007 upper bound on robustness - more steps would do more; raise steps" in text
    assert r"raise steps\_" in text


@pytest.mark.parametrize("draw", [curves, profile, tradeoff, heatmap, visibility])
def test_long_names_stay_inside_of_the_figure(draw: Drawing, tmp_path: Path) -> None:
    name = "monai(net=UNet, dims=3, window=(32, 32, 48))"
    attack = "strongest(gradients=1000, unit='volume')"
    write_run(tmp_path, dice_of(0, 7), model=name, attack=attack)
    with paper_style():
        figure = draw(tables(read_runs([tmp_path]), unit="volume", empty="one"), 88)
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
        boxes = {text.get_text(): text.get_window_extent() for text in texts}
    page = figure.bbox.padded(1)
    assert not [name for name, box in boxes.items() if not (page.contains(*box.min) and page.contains(*box.max))]


@pytest.mark.parametrize("name", TRICKY)
def test_names_are_text(name: str, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 3)[:, :, :2], model=name, organs=(name, "b"))
    for kind in sorted({*DRAWINGS} - {"transfer"}):
        medattack("figure", kind, tmp_path / "runs", "--out", tmp_path / f"{kind}.svg")
    medattack("figure", "table", tmp_path / "runs", "--out", tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)[_$]b\$|(?<!\\)50 %|\\input", text)


def test_the_worst_scans_are_drawn(tmp_path: Path) -> None:
    write_attacked(tmp_path)
    words = ["--home", tmp_path / "home", "--trust", "--worst", 2]
    medattack("figure", "gallery", tmp_path / "runs", "--out", tmp_path / "g.png", *words)
    with Image.open(tmp_path / "g.png") as image:
        assert image.size[1] > 400


def test_every_attack_on_a_scan_is_a_row_with_what_caused_the_change(tmp_path: Path) -> None:
    write_attacked(tmp_path, attacks=("fgsm", "deformation(steps=2)"))
    scan = read_runs([tmp_path / "runs"])["volume"].iloc[0]
    words = ["--home", tmp_path / "home", "--trust", "--scan", scan]
    medattack("figure", "gallery", tmp_path / "runs", "--out", tmp_path / "g.svg", *words, "--width", 254)
    medattack("figure", "gallery", tmp_path / "runs", "--out", tmp_path / "column.pdf", *words)
    drawn = ET.parse(tmp_path / "g.svg").getroot()
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}image"))) >= 4 * 3  # two budgets of each attack
    ids = [str(each.get("id", "")) for each in drawn.iter()]
    assert sum(name.startswith("Quiver") for name in ids) == 2  # of the movement alone
    refusal = medattack("figure", "gallery", tmp_path / "runs", "--out", tmp_path / "h.png", *words[:-1], "x", code=2)
    assert "expected a scan of a run of an attack, got 'x'" in " ".join(refusal.stderr.split())
    assert not (tmp_path / "h.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curves", "--out", "t.pdf", "--scan", "p0"], "expected --scan for a gallery alone"),
        (["table", "--out", "t.pdf"], "expected a file .tex for a table"),
        (["curves", "--out", "t.tex"], "expected a file .tex for a table, and another for a figure"),
        (["curves", "--out", "t.docx"], "expected a file .png, .pdf, .svg to draw"),
    ],
)
def test_another_ending_is_refused(
    words: list[str], message: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal = medattack("figure", words[0], runs, *words[1:], code=2)
    assert message in " ".join(refusal.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_runs_that_transfer_nothing_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 3))
    refusal = medattack("figure", "transfer", tmp_path / "runs", "--out", tmp_path / "t.png", code=2)
    assert "expected runs of images that were made for another model" in " ".join(refusal.stderr.split())


def test_a_file_of_somebody_else_is_kept(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "paper.tex").write_text(r"\documentclass{article}")
    medattack("figure", "table", runs, "--out", tmp_path / "paper.tex", code=2)
    assert (tmp_path / "paper.tex").read_text() == r"\documentclass{article}"
    for _ in range(2):
        medattack("figure", "table", runs, "--out", tmp_path / "own.tex")
