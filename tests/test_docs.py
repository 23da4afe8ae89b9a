"""The pages say what is true: links lead somewhere, commands parse, specs build, Python runs, the tree is the tree."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
import typer.main
import yaml
from helpers.command import medattack
from helpers.documents import ROOT, fenced, lines_of_shell, read_page

import medseg_attack
from medseg_attack import registry
from medseg_attack.cli import app
from medseg_attack.cli.ls import KINDS
from medseg_attack.errors import InputError
from medseg_attack.gate.rules import parse as parse_rule
from medseg_attack.runs.study import read_study
from medseg_attack.threat.budgets import parse_budget

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OTHER_PROGRAMS = ("cd", "for", "git", "mkdir", "pip", "source", "torchrun")  # of a shell, and of other projects
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # click's, which newer versions of typer bring along
PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands
PARAMETERS = [option for command in (PROGRAM, *COMMANDS.values()) for option in command.params]
OPTIONS = {"--help"} | {word for option in PARAMETERS for word in (*option.opts, *option.secondary_opts)}
# calls in the pages that are Python, of this project or of another, and no spec
PYTHON = {"Flag", "Orientationd", "__call__", "attack", "attack_chunk", "away", "listing", "model", "near"}
PYTHON |= {"PGD", "batch", "forward", "help", "loss", "marked", "sigmoid", "wanted"}
OTHER_TOOLS = {"--simulations", "--side", "--slices"}  # options of the programs in benchmarks/
OTHER_TOOLS |= {"--again", "--longest", "--seconds", "--survivors", "--tests"}  # of tests/mutate.py
OTHER_TOOLS |= {"--nproc-per-node", "--max-restarts", "--array"}  # of torchrun and sbatch
OTHER_TOOLS |= {"--shapes"}  # of tests/conftest.py


def blocks(page: str, *languages: str) -> list[str]:
    """Fenced blocks in one of the languages."""
    return fenced(read_page(page), *languages)


def inline(page: str) -> list[str]:
    """What stands between backticks in a page's prose."""
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def shell_lines(page: str) -> list[list[str]]:
    """The words of every line in a page's shell blocks."""
    return [shlex.split(line, comments=True) for line in lines_of_shell(read_page(page))]


def command_lines(page: str) -> list[list[str]]:
    """The words after `medattack` of every command in a page's shell blocks."""
    return [line[1:] for line in shell_lines(page) if line[0] == "medattack"]


def mentions(page: str) -> list[list[str]]:
    """The words of every command that prose mentions, `attack --plan` or `medattack attack --plan`."""
    lines = [shlex.split(code) for code in inline(page) if re.match(rf"(medattack )?({'|'.join(COMMANDS)})( |$)", code)]
    return [line[line[0] == "medattack" :] for line in lines]


def parse(words: list[str], complete: bool = True) -> dict[str, object]:
    """The values of a command line's options.

    Raises:
        USAGE_ERROR: no such command, option or choice; or, of a complete line, something is missing.
    """
    if words[0] not in COMMANDS:
        raise typer.BadParameter(f"no command {words[0]}")
    try:
        return COMMANDS[words[0]].make_context(words[0], words[1:]).params
    except USAGE_ERROR as error:
        if complete or type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
            raise
        return {}


def check_values(command: str, values: dict[str, object]) -> None:
    """Builds what the options spell: attacks, objectives, budgets, formats, metrics and rules."""
    if command == "ls" and values:
        assert values["what"] in KINDS
    for option, kind in (
        ("attack", "attack"),
        ("defence", "defence"),
        ("robust_by", "attack"),
        ("loss", "objective"),
        ("against", "attack"),
        ("metrics", "metric"),
        ("format", "dataset"),
        ("spec", "poison"),
    ):
        texts = values.get(option) or ()
        for text in [texts] if isinstance(texts, str) else texts:
            if (command, option) != ("train", "loss"):  # losses of trainings have names of their own
                registry.build(str(text), kind)
    budgets = values.get("eps") or ()
    for text in [budgets] if isinstance(budgets, str) else budgets:
        parse_budget(text)
    for text in values.get("fail_if") or ():
        parse_rule(text)
    models = values.get("model") or ()
    for text in [models] if isinstance(models, str) else models:
        if command == "train" or "(" in text:
            registry.build(text, "model")


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), f"{page} links to {target}"


@pytest.mark.parametrize("page", NAMES)
def test_command_lines_are_what_the_command_line_takes(page: str) -> None:
    for words in command_lines(page):
        check_values(words[0], parse(words))
    for words in mentions(page):
        check_values(words[0], parse(words, complete=False))


def check_line(words: list[str]) -> None:
    """Fails on a line of a shell that starts what is not there: a target, a module, a file or an extra."""
    program, *rest = words
    extras = [extra for word in rest for extra in re.findall(r"medseg-attack\[(.*?)\]", word)]
    assert {extra for text in extras for extra in text.split(",")} <= set(PROJECT["project"]["optional-dependencies"])
    if program == "make":
        (target,) = [word for word in rest if "=" not in word] or ["install"]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), words
    elif program.startswith("python") and rest[:1] == ["-m"]:
        assert rest[1] in ("pip", "venv", "pytest") or (ROOT / f"{rest[1].replace('.', '/')}.py").is_file(), words
    elif program.startswith("python"):
        assert (ROOT / rest[0]).is_file(), words
    elif "/" in program:
        assert (ROOT / program).is_file(), words
    else:
        assert program in ("medattack", *OTHER_PROGRAMS), words


@pytest.mark.parametrize("page", NAMES)
def test_every_line_of_a_shell_starts_what_is_there(page: str) -> None:
    for words in shell_lines(page):
        check_line([word for word in words if not re.match(r"[A-Z_]+=", word)])


@pytest.mark.parametrize(
    "line",
    [
        "make dcos",
        "python benchmarks/galery.py",
        "benchmarks/gpu/rn.sh",
        "medatack ls",
        "pip install 'medseg-attack[reports]'",
    ],
)
def test_the_test_of_lines_can_fail(line: str) -> None:
    with pytest.raises(AssertionError):
        check_line(shlex.split(line))


@pytest.mark.parametrize("page", NAMES)
def test_options_in_prose_exist(page: str) -> None:
    for code in inline(page):
        for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert word in OPTIONS | OTHER_TOOLS or f"{word}=" in code, f"{page}: {code}"


def calls(page: str) -> Iterator[tuple[str, str]]:
    """Every call in prose, alone or as the value of an option, with the name that it calls."""
    for code in inline(page):
        text = shlex.split(code)[-1] if code.startswith("-") else code
        if re.fullmatch(r"[a-z_A-Z]\w*\(.+\)", text) and "..." not in text:
            yield text.partition("(")[0], text


@pytest.mark.parametrize("page", NAMES)
def test_specs_in_prose_build(page: str) -> None:
    for name, text in calls(page):
        if name in PYTHON:
            ast.parse(text)
        else:
            registry.build(text, registry.find(name).kind)


@pytest.mark.parametrize("page", NAMES)
def test_study_files_are_studies(page: str, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        assert isinstance(yaml.safe_load(text), dict)
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
        assert read_study(tmp_path / f"{number}.yaml", {}).models


def test_the_tree_in_the_docs_is_the_package() -> None:
    (tree,) = [text for text in blocks("docs/developing.md", "text") if text.startswith("medseg_attack/\n")]
    parents: list[str] = []
    shown = set()
    for line in tree.splitlines()[1:]:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents = [*parents[: depth - 1], name.rstrip("/")]
        assert (ROOT / "medseg_attack").joinpath(*parents).exists(), line
        shown.add("/".join(parents))
    package = Path(medseg_attack.__file__).parent
    top = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert top <= shown, f"add to the tree of docs/developing.md: {', '.join(sorted(top - shown))}"


@pytest.mark.parametrize("page", NAMES)
def test_files_that_prose_names_exist(page: str) -> None:
    for code in inline(page):
        if re.fullmatch(r"(medseg_attack|tests|benchmarks|docs)/[\w/.]+", code):
            assert (ROOT / code).exists(), f"{page}: {code}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the pages has it: `data` and `model`, small."""
    root = tmp_path_factory.mktemp("pages")
    phantom = "phantom(patients=6, slices=3, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.5", "--out", root / "data")
    medattack("train", "--data", root / "data", "--model", "unet_small", "--epochs", "1", "--out", root / "model")
    return root


@pytest.mark.parametrize("page", [page for page in NAMES if blocks(page, "python")])
def test_python_in_the_pages_runs(page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)


def test_the_change_of_a_linear_number_on_the_python_page_is_eps_times_the_sum_of_weights() -> None:
    """In the ball of L-inf no image changes it by more: w (x' - x) = eps sum |w| where nothing is cut at 0 or 1."""
    image = 0.3 + 0.4 * torch.rand(3, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"ma": medseg_attack, "batch": SimpleNamespace(image=image)}
    (code,) = (code for code in blocks("docs/python.md", "python") if "class Numbers" in code)
    exec(code, names)
    with torch.no_grad():
        change = (names["net"](names["attacked"]) - names["net"](image))[:, 0]
    most = 4 / 255 * names["net"][1].weight.detach().abs().sum()
    torch.testing.assert_close(change, most.expand(3))


def test_the_attack_of_the_python_page_stays_in_its_budget(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, object] = {}
    for code in blocks("docs/python.md", "python")[:2]:
        exec(code, names)
    size = names["result"].size  # type: ignore[attr-defined]
    assert len(size) == 4
    assert 0 < size.max() <= 4 / 255 + 1e-6
    assert 0 < capsys.readouterr().out.count(" -> ") <= 12  # four slices of three organs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attack --atack fgsm", "No such option"),
        ("atack --attack fgsm", "no command"),
        ("attack --unit organ", "is not one of"),
        ("prepare --format phantom", "^Example: medattack prepare"),
    ],
)
def test_the_test_of_command_lines_can_fail(line: str, message: str) -> None:
    with pytest.raises(USAGE_ERROR, match=message):
        parse(shlex.split(line))


@pytest.mark.parametrize("line", ["attack --attack 'pgd(stepz=3)'", "attack --loss bcee", "attack --eps 5HUU"])
def test_the_test_of_specs_can_fail(line: str) -> None:
    words = shlex.split(line)
    with pytest.raises(InputError):
        check_values(words[0], parse(words))


@pytest.mark.parametrize("page", NAMES)
def test_programs_in_benchmarks_have_the_options_that_pages_give_them(page: str) -> None:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines() + inline(page)
    for words in (shlex.split(line) for line in lines if line.startswith("python benchmarks/")):
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for word in words[2:]:
            assert not word.startswith("--") or f'"{word}"' in source, f"{page}: {' '.join(words)}"
