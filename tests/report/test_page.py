"""The page about runs: its numbers are those of `compare --json`, names are text on it, and it asks no network."""

import base64
import builtins
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.command import medattack
from helpers.pages import read_html
from helpers.runs import dice_of, write_run

from medseg_attack.cli.demo import steps

ORGANS = ("liver", "spleen")
NAMES = [
    "<script>alert(1)</script>",
    "a\"b'c",
    "[red]x[/red]",
    "a|b",
    r"\input{x}",
    "Ω é 日本",
    "</title>",
    "{{ 7*7 }}",
]
HIDDEN = "right‮left"


class Page(HTMLParser):
    """What a browser reads from a page: text, scripts, the cells of the table, and everything that it may load."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.cells: list[list[tuple[str, dict[str, str | None]]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag == "tr" and "data-organ" in dict(attrs):
            self.cells.append([])
        elif tag in ("td", "th") and self.cells:
            self.cells[-1].append(("", dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        if self.scripts and tag == "script":
            self.scripts[-1] += data
            return
        self.text += data
        if self.cells and self.cells[-1]:
            text, attrs = self.cells[-1][-1]
            self.cells[-1][-1] = (text + data, attrs)


def page_of(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def page_text(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models under an attack at two budgets, on 7 patients."""
    root = tmp_path_factory.mktemp("runs")
    for i, (model, weights) in enumerate((("unet", "a"), ("fpn", "b"))):
        for eps in (0.01, 0.02):
            dice = dice_of(i, 7)[:, :, :2] - 10 * eps
            write_run(root, dice, model=model, weights=weights, eps=eps, organs=ORGANS)
    return root


@pytest.fixture(scope="module")
def folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    medattack("report", runs, "--out", out)
    return out


def test_every_number_of_the_table_is_that_of_compare(runs: Path, folder: Path) -> None:
    compared = json.loads(medattack("compare", runs, "--json").stdout)["runs"]
    lines = page_of(folder).cells
    assert len(lines) == len(compared) * (len(ORGANS) + 1)
    for n, line in enumerate(lines):
        run, organ = compared[n // 3], ("mean", *ORGANS)[n % 3]
        texts = [text.strip() for text, _ in line]
        values = [float(attrs["data-value"] or "nan") for _, attrs in line if "data-value" in attrs]
        ends = [run["low"], run["high"]] if organ == "mean" else [run[f"{organ}_low"], run[f"{organ}_high"]]
        clean, adv = run[f"{organ}_clean"], run[f"{organ}_adv"]
        assert texts[:2] == [run["model"], run["attack"]]
        assert texts[4] == organ
        assert values[:3] == [run["eps"], clean, adv]
        assert values[3] == ends[0]
        assert float(line[7][1]["data-high"] or "nan") == ends[1]
        assert values[4] == (run["drop"] if organ == "mean" else pytest.approx(clean - adv, abs=1e-12))
        assert values[-1] == run["patients"]
        if organ == "mean":
            assert values[5:8] == [run["relative_drop"], run["below_half"], run["missed"]]


def data_of(folder: Path) -> Any:
    return json.loads(page_of(folder).scripts[0])


def test_curves_are_those_of_compare(runs: Path, folder: Path) -> None:
    compared = json.loads(medattack("compare", runs, "--json").stdout)["runs"]
    (panel,) = data_of(folder)["panels"]
    points = [point for point in panel["points"] if point["eps"] != "clean"]
    assert len(points) == len(compared) * (len(ORGANS) + 1)
    for point in points:
        run, organ = compared[point["run"]], point["organ"]
        low, high = ("low", "high") if organ == "mean" else (f"{organ}_low", f"{organ}_high")
        assert (point["adv"], point["low"], point["high"]) == (run[f"{organ}_adv"], run[low], run[high])
        assert point["x"] == pytest.approx(255 * run["eps"])


def test_the_mean_over_patients_is_that_of_compare(runs: Path, folder: Path) -> None:
    """Every patient has as many scans, so that their mean is the mean over scans."""
    compared = json.loads(medattack("compare", runs, "--json").stdout)["runs"]
    each = data_of(folder)["each"]
    assert each["patients"] == [f"p{i:02d}" for i in range(7)]
    for run, places in zip(compared, each["runs"], strict=True):
        for organ, (clean, attacked) in places.items():
            for name, place in ((f"{organ}_clean", clean), (f"{organ}_adv", attacked)):
                assert sum(each["lists"][place]) / 7 == pytest.approx(run[name], abs=1e-6)


def test_the_answer_is_one_sentence_of_the_numbers_of_compare(runs: Path, folder: Path) -> None:
    compared = json.loads(medattack("compare", runs, "--json").stdout)["runs"]
    worst = min(compared, key=lambda run: run["mean_adv"])
    (answer,) = re.findall(r'<p class="answer">(.*?)</p>', read_html(folder / "index.html"))
    assert f"took the mean Dice of {worst['model']} from {worst['mean_clean']:.3f} to {worst['mean_adv']:.3f}" in answer
    assert "2 models (fpn, unet) were attacked on 7 patients of toy (test split) with 1 attack (fgsm)" in answer
    assert len(re.findall(r"\.(?= |$)", answer)) == 1


def test_the_page_loads_nothing_and_runs_its_own_scripts_alone(folder: Path) -> None:
    page = page_of(folder)
    (policy,) = [
        str(attrs["content"]) for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for _, attrs in page.tags:
        for name in ("src", "href", "action", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png")), attrs


def test_names_are_text(tmp_path: Path) -> None:
    for name in NAMES:
        names = {"model": name, "organs": [name, HIDDEN], "names": f"{name.replace('{', '{{').replace('}', '}}')}-{{}}"}
        write_run(tmp_path / "runs", dice_of(0, 2)[:, :, :2], weights=str(NAMES.index(name)), **names)
    medattack("report", tmp_path / "runs", "--out", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert len(page.scripts) == 3
    data = json.loads(page.scripts[0])
    for name in NAMES:
        assert page.text.count(name) >= 3, name
        assert f"{name}-p00" in data["each"]["patients"]
        assert name in data["models"]
        assert name in data["organs"]
    assert "49" not in [cell for line in page.cells for cell, _ in line]
    assert HIDDEN not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert r"right\u202eleft" in page.text


def test_commands_and_the_study_stand_line_by_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "in", dice_of(0, 2))
    (run.parent.parent / "study.yaml").write_text("data: d\nmodels:\n- <b>\u202em\n")
    medattack("report", run, "--out", tmp_path / "out", "--worst", 0)
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    commands, study, *_ = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    words = [line.split()[:2] for line in commands.removeprefix("<code>").splitlines()]
    assert words == [["medattack", "attack"], ["medattack", "compare"], ["medattack", "report"]]
    assert study.splitlines() == ["data: d", "models:", "- &lt;b&gt;\\u202em"]


def test_a_long_name_breaks_between_its_words_and_stays_whole_where_no_tag_can_stand(tmp_path: Path) -> None:
    attack = "pgd(steps=40, objective=toward(bce, erase('liver_left')))"
    write_run(
        tmp_path / "runs",
        dice_of(0, 2)[:, :, :2],
        attack=attack,
        model="u_<b>net",
        organs=ORGANS,
        data="heart/of_patients",
    )
    medattack("report", tmp_path / "runs", "--out", tmp_path / "out", "--worst", 0)
    text = page_text(tmp_path / "out")
    parts = "pgd(steps=40, objective=<wbr>toward(<wbr>bce, erase(<wbr>&#39;liver_<wbr>left&#39;)))"
    assert text.count(f">{parts}</td>") == len(ORGANS) + 1
    assert "<h1>u_&lt;b&gt;net on heart/<wbr>of_<wbr>patients</h1>" in text
    page = Page(text)
    assert not any("wbr" in str(value) for _, attrs in page.tags for value in attrs.values())
    assert not any("wbr" in element for element in re.findall("<(?:option|title).*?</", text))
    assert "wbr" not in page.scripts[0]


def test_flags_stand_with_their_explanation_and_in_the_rows_of_their_runs(tmp_path: Path) -> None:
    flag = {
        "code": "MA029",
        "verdict": "note",
        "title": "too few patients",
        "about": "all runs",
        "seen": "2 patients",
        "todo": "do not generalise",
    }
    write_run(tmp_path / "runs", dice_of(0, 2), flags=[flag])
    write_run(tmp_path / "runs", dice_of(0, 2), eps=0.02)
    medattack("report", tmp_path / "runs", "--out", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert [line[-1][0].strip() for line in page.cells[:: len(page.cells) // 2]] == ["MA029", ""]
    assert "do not generalise" in page.text
    assert "unet, all runs: 2 patients" in page.text
    explained = medattack("explain", "MA029", "--json").stdout
    assert json.loads(explained)["explanation"][:60] in page.text


def test_a_page_of_its_own_is_written_again_and_nothing_else_is(runs: Path, tmp_path: Path) -> None:
    for _ in range(2):
        medattack("report", runs, "--out", tmp_path)
    (tmp_path / "index.html").write_text("<html>mine</html>", encoding="utf-8")
    refusal = medattack("report", runs, "--out", tmp_path, code=2)
    assert "which is something else; name another file" in " ".join(refusal.stderr.split())
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "<html>mine</html>"


def test_compare_writes_the_page_of_report(runs: Path, folder: Path, tmp_path: Path) -> None:
    result = medattack("compare", runs, "--html", tmp_path / "compared.html", "--json")
    assert "runs" in json.loads(result.stdout)
    assert f"page:{tmp_path / 'compared.html'}" in "".join(result.stderr.split())
    assert (tmp_path / "compared.html").read_bytes() == (folder / "index.html").read_bytes()


def test_the_page_of_compare_has_its_labels_unit_and_rule(runs: Path, tmp_path: Path) -> None:
    words = ("--label", "unet=Ours", "--empty", "zero", "--unit", "patient")
    medattack("compare", runs, "--html", tmp_path / "compared.html", *words)
    medattack("report", runs, "--out", tmp_path, *words[2:])
    text = (tmp_path / "compared.html").read_text(encoding="utf-8")
    assert text.count("Ours") > 3
    assert re.findall('"runs-note">.*?</p>', text) == re.findall('"runs-note">.*?</p>', page_text(tmp_path))


def test_a_page_that_cannot_be_written_is_refused_before_any_work(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.html"
    file.write_text("<p>mine</p>")
    result = medattack("compare", runs, "--html", file, "--csv", tmp_path / "table.csv", code=2)
    assert "expected" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


@pytest.mark.parametrize("name", ["altair", "jinja2", "vl_convert"])
def test_a_missing_package_is_named_with_what_to_install(
    name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module == name:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return importing(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    refusal = " ".join(medattack("report", runs, "--out", tmp_path / "out", code=2).stderr.split())
    assert f"got none of the name {name}; install them: pip install 'medseg-attack[report]'" in refusal
    assert not (tmp_path / "out").exists()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refusal = medattack("report", tmp_path / "empty", "--out", tmp_path / "out", code=2)
    assert "expected a run in" in refusal.stderr
    assert not (tmp_path / "out").exists()


def test_runs_without_attacks_have_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 1), role="clean", attack="clean", eps=0.0, loss="")
    medattack("report", tmp_path / "runs", "--out", tmp_path / "out")
    assert "no attack was run" in page_of(tmp_path / "out").text


def test_the_demo_ends_with_a_page_and_without_the_packages_with_what_it_did_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [words[0] for words in steps(tmp_path)] == ["prepare", "train", "attack", "compare", "report"]
    monkeypatch.setitem(sys.modules, "altair", None)
    assert [words[0] for words in steps(tmp_path)] == ["prepare", "train", "attack", "compare"]
