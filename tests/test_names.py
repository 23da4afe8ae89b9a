"""Names are text: whatever an organ, case, model or file is called, every output of every command shows it as it is."""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from helpers.command import medattack
from helpers.runs import dice_of, worse, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib import cbook
from PIL import Image
from rich.cells import cell_len

from medseg_attack import escaping
from medseg_attack.cli import consoles, terminal
from medseg_attack.errors import InputError
from medseg_attack.escaping import visible
from medseg_attack.report.curve import curve
from medseg_attack.report.sheet import Sheet, csv_text, latex, markdown, rich_table
from medseg_attack.runs.reading import read_runs

HOSTILE = (
    "kidney [left]",
    "[red]",
    "[/x]",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "two\nlines\r",
    "a|b||",
    "<script>alert(1)</script>&amp;",
    "$x^2$ and $",
    "# heading",
    "}{\\end{tabular}%",
    "=HYPERLINK(1)",
    "@SUM(1)",
    "-1+1",
    "half \udcff of it",
    "_hidden_ **bold** `code` ~~gone~~",
    ":smile: \u202egnp.exe",
    "mean",
    "success_of",
    "- item\n| --- |",
    "{0} %s {task}",
)
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=20),
    st.text("[]{}()<>|\\$#%&_*`~^=+-@!:'\"/ \n\x1b\udc80ab1", max_size=20),
)


def shown(text: str) -> str:
    """What is seen of a text, its spaces aside."""
    return "".join(text.split())


def of(name: str) -> Sheet:
    return Sheet(f"of {name}", ["organ", name], [[name, "0.5"], ["", name]], name, flags=[name])


@settings(deadline=None)
@given(name=NAMES)
def test_a_terminal_shows_every_name_and_obeys_none(name: str) -> None:
    console = consoles.out()
    sheet = Sheet("", ["organ"], [[name]])
    with console.capture() as capture:
        console.print(rich_table(sheet))
        console.print(name)
    text = capture.get()
    assert shown(visible(name)) in shown(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert max(map(cell_len, text.split("\n"))) <= 100


@settings(deadline=None)
@given(name=NAMES)
def test_markdown_shows_every_name(name: str) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown(of(name)))
    inline = [token for token in tokens if token.type == "inline"]
    shapes = {child.type for token in inline[1:] for child in token.children or []}
    assert shapes <= {"text", "text_special"}
    assert {child.type for child in inline[0].children or []} == {"strong_open", "strong_close", "text"}
    texts = ["".join(child.content for child in token.children or []) for token in inline]
    texts[7:] = [text.replace("\xa0", " ") for text in texts[7:]]
    stripped = visible(name).strip()
    assert texts[0].strip() == f"of {visible(name)}".strip()
    assert texts[1:7] == ["organ", stripped, stripped, "0.5", "", stripped]
    assert texts[7:] == [text for text in [stripped.replace("\xa0", " "), stripped.replace("\xa0", " ")] if text]


SPECIAL = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    "{[}": "[",
    "{*}": "*",
    r"\textasciigrave{}": "`",
    "{}": "",  # keeps two signs apart
    "~": " ",  # at which no line ends
    **{f"\\{character}": character for character in "{}$&#_%"},
}


def read_latex(text: str) -> str:
    """What LaTeX prints of a text; fails where a character would be obeyed."""
    result = []
    while text:
        command = next((command for command in SPECIAL if text.startswith(command)), None)
        assert command or text[0] not in "\\{}$&#_%~^[*<>|`", text
        assert not text.startswith(("--", "''", ",,")), text  # a dash or quotation marks
        result.append(SPECIAL[command] if command else text[0])
        text = text[len(command or text[0]) :]
    return "".join(result)


@settings(deadline=None)
@given(name=NAMES)
def test_latex_shows_every_name(name: str) -> None:
    lines = latex(of(name)).split("\n")
    start, end = lines.index(r"\toprule"), lines.index(r"\bottomrule")
    rows = [line.removesuffix(r" \\") for line in lines[start + 1 : end] if line != r"\midrule"]
    cells = [[read_latex(cell) for cell in re.split(r"(?<!\\) & |^ & | & $", row)] for row in rows]
    text = visible(name)
    assert "".join(map("".join, cells)) == f"organ{text}{text}0.5{text}"
    (caption,) = [line for line in lines if line.startswith(r"\caption{")]
    assert read_latex(caption.removeprefix(r"\caption{").removesuffix("}")) == f"of {text}. {text}"


@settings(deadline=None)
@given(name=NAMES)
def test_a_cell_of_csv_is_no_formula(name: str) -> None:
    name = escaping.whole_characters(name)  # as in tables
    table = pd.DataFrame({"organ": [name, "x"], f"{name}_adv": [0.5, -0.5]})
    head, first, second = csv.reader(io.StringIO(csv_text(table), newline=""))
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in (*head, *first))
    assert first[0] in (visible(name), f"'{visible(name)}")
    assert second == ["x", "-0.5"]


@settings(deadline=None)
@given(name=NAMES)
def test_figures_annotations_and_json_show_every_name(name: str) -> None:
    text = escaping.figure(name)
    assert not cbook.is_math_text(text)
    assert text.replace(r"\$", "$").strip() == visible(name).strip()
    assert not text.startswith("_")
    assert "\n" not in escaping.github(name)
    element = ElementTree.Element("testcase", name=visible(name))
    assert ElementTree.fromstring(ElementTree.tostring(element)).get("name") == visible(name)


def test_errors_and_progress_show_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    @terminal.command
    def fails(name: str) -> None:
        raise InputError(f"expected a file, got {name}; name another", f"  {name}")

    for name in HOSTILE:
        with pytest.raises(terminal.typer.Exit):
            fails(name)
        message = capsys.readouterr().err
        assert shown(f"error: expected a file, got {visible(name)}; name another {visible(name)}") == shown(message)
        assert message.count("\n") == 2
        terminal.say(f"note: {name}")
        terminal.print_next(name)
        assert capsys.readouterr().err.split("\n") == [f"note: {visible(name)}", f"Next: {visible(name)}", ""]


def test_a_long_error_wraps_between_words_and_leaves_paths_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/data/" + "x" * 150
    terminal.say(f"note: {'word ' * 60}{path} end")
    lines = capsys.readouterr().err.split("\n")
    assert [line for line in lines if len(line) > 100] == [path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose organs, cases, models, data and losses have such names, three at a time."""
    folder = tmp_path_factory.mktemp("names")
    storable = [name for name in HOSTILE if "\udcff" not in name]
    for i in range(0, len(storable) - 2, 3):
        organs = storable[i : i + 3]
        for model, by in ((organs[0], 0.0), (f"{organs[0]} again", 0.1)):
            of_case = {"names": organs[1].replace("{", "{{").replace("}", "}}") + "{}", "organs": organs}
            facts = {"data": organs[1], "loss": organs[2], "flags": [flag(organs[0])]}
            write_run(folder / str(i), worse(dice_of(0, 8), by), model=model, weights="ab"[by > 0], **of_case, **facts)
    return folder


def flag(about: str) -> dict[str, str]:
    words = {"title": "t", "seen": about, "todo": "do"}
    return {"code": "MA007", "verdict": "note", "about": about, **words}


GROUPS = [str(i) for i in range(0, len(HOSTILE) - 3, 3)]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", ["", "--markdown", "--latex", "--json"])
def test_compare_prints_every_name(runs: Path, group: str, form: str, tmp_path: Path) -> None:
    rules = ["--fail-if", "adv_dice<0.01", "--github", "--junit", tmp_path / "gate.xml"] if form != "--json" else []
    files = ["--csv", tmp_path / "table.csv"]
    words = [runs / group, *([form] if form else []), "--by", "model,organ", "--deltas", "--paired", "model"]
    result = medattack("compare", *words, *rules, *files)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", result.stdout + result.stderr)
    names = organs_of(runs / group)
    if form == "--json":
        assert {one["cls"] for one in json.loads(result.stdout)["deltas"]} == names
    elif not form:
        assert max(map(cell_len, result.stdout.split("\n"))) <= 100
    text = (tmp_path / "table.csv").read_bytes().decode()
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert {visible(name) for name in names} <= {cell.removeprefix("'") for cell in cells}
    if rules:
        ElementTree.parse(tmp_path / "gate.xml")


def test_a_plot_names_every_line(tmp_path: Path) -> None:
    names = [escaping.whole_characters(name) for name in HOSTILE]
    runs = [{"model": name, "attack": "fgsm", "loss": name, "eps": 0.01, "ball": "linf(eps=0.01)"} for name in names]
    same = {"data": "toy", "split": "test", "cases_id": "c", "role": "attack", "mean_clean": 0.9, "mean_adv": 0.5}
    table = pd.DataFrame([run | same | {"low": 0.4, "high": 0.6, "eps_unit": ""} for run in runs])
    curve(table, tmp_path / "curve.svg")
    ElementTree.parse(tmp_path / "curve.svg")


def organs_of(folder: Path) -> set[str]:
    return set(read_runs([folder])["cls"])


def test_organs_that_share_their_first_word_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, dice_of(0, 8), organs=("kidney [left]", "kidney [right]", "mean"))
    table = medattack("compare", tmp_path, "--by", "organ").stdout
    assert "kidney [left]" in table
    assert "kidney [right]" in table
    (run,) = json.loads(medattack("compare", tmp_path, "--json").stdout)["runs"]
    assert run["mean_adv"] == pytest.approx(
        sum(run[f"{name}_adv"] for name in ("kidney [left]", "kidney [right]", "mean (organ)")) / 3
    )


def test_every_command_takes_files_of_any_name(tmp_path: Path) -> None:
    """From pictures to a verified study: nothing of a name is obeyed, and nothing is lost."""
    source = tmp_path / "[/x] $source$"
    names = ["[red]", "a\x1b[31mb", "=1+1|", "<script>$x$", "-h{}#%s", "two\nlines", "half \udcff", "_x_", "{0}"]
    for i, name in enumerate(names):
        for folder in ("images", "masks"):
            (source / folder).mkdir(parents=True, exist_ok=True)
            value = 128 if folder == "masks" else 60 + 10 * i
            picture = Image.new("L", (32, 32), 0 if folder == "masks" else 20)
            picture.paste(value, (8, 8, 20, 20))
            with (source / folder / f"{name}.png").open("wb") as file:
                picture.save(file, "PNG")
    home, organ = tmp_path / "home", "liver [/x] | $a$"
    data, model, run = home / "data", home / "model {0}", home / "run [b]"
    small = ["--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--device", "cpu"]
    outputs = [
        medattack(
            "prepare", source, "--format", "folder", "--labels", f'"{organ}"=128', "--out", data, "--test", "0.4"
        ),
        medattack("train", "--data", data, *small, "--out", model),
        medattack("attack", "--data", data, "-m", model, "--eps", "4/255", "--out", run, "--save-adversarial", "all"),
        medattack("verify", run),
        medattack("compare", run, "--deltas"),
        medattack("evaluate", "--data", data, "-m", model, "--csv", tmp_path / "scores.csv", "--out", home / "eval"),
        medattack("doctor", "--data", data, "-m", model, code=1),  # it finds nothing after one epoch
    ]
    for result in outputs:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", result.stdout + result.stderr)
    organs = [result.stdout for result in outputs if organ in " ".join(result.stdout.split())]
    assert len(organs) >= 4
