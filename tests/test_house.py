"""The layout, the names and the sentences of the package: what a stranger relies on to find things."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import medseg_attack
from medseg_attack.registry.table import entries, load

PACKAGE = Path(medseg_attack.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
# how we came by a thing, or that it was mentioned: none of it says what the thing is
PRONOUNS = {"found", "told", "said", "seen", "made", "given", "mine", "theirs", "ours", "here", "there"}
OPENINGS = {"Of", "By", "As", "To", "In", "Where", "What"}


def test_the_root_holds_what_everybody_uses() -> None:
    modules = {file.stem for file in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "__main__", "types", "errors", "escaping", "runtime"}


def test_a_folder_has_at_most_12_files_at_one_level() -> None:
    folders = {file.parent for file in FILES} - {PACKAGE / "cli"}
    sizes = {folder.relative_to(PACKAGE).as_posix(): len(list(folder.glob("[!_]*.py"))) for folder in folders}
    assert {folder: n for folder, n in sizes.items() if n > 12} == {}


def test_there_are_at_most_14_layers() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"] == "one way down"]
    assert len(layers) <= 14


def test_the_formatter_decides_where_lines_break() -> None:
    assert [file.name for file in FILES if "# fmt: " in file.read_text(encoding="utf-8")] == []


def test_every_folder_says_what_it_holds() -> None:
    silent = [name for name, tree in TREES.items() if name.endswith("__init__.py") and not ast.get_docstring(tree)]
    assert silent == []


@pytest.mark.parametrize("name", TREES)
def test_names_say_what_things_are(name: str) -> None:
    wrong = [f"{line}: {word}" for word, line in _names(TREES[name]) if PRONOUNS & set(word.strip("_").split("_"))]
    assert wrong == []


def _names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a file gives, and the line where it does."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno


@pytest.mark.parametrize("name", TREES)
def test_docstrings_stand_alone(name: str) -> None:
    wrong = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
            first = text.partition("\n")[0]
            if first.split()[0].rstrip(":,.") in OPENINGS or re.fullmatch(r"MA\d+\.?", first):
                wrong.append(first)
    assert wrong == []


@pytest.mark.parametrize("name", TREES)
def test_abilities_are_asked_by_protocols(name: str) -> None:
    """Other people's objects and the registry's own fields apart, nobody asks an object by the name of a member."""
    if name.startswith(("models/importers/", "registry/")):
        return
    wrong = [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[1], ast.Constant)
    ]
    assert wrong == []


def test_no_path_is_resolved_that_may_link_to_itself() -> None:
    """`Path.resolve` raises a RuntimeError on such a link until Python 3.13; `paths.real_path` does not."""
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "resolve"
        and not node.args  # a function of that name, of another module, has some
    ]
    assert wrong == []


def test_safetensors_are_opened_by_one_function_alone() -> None:
    """It opens regular files only: the library would wait for the other end of a pipe, and no signal would end that."""
    wrong = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "safe_open" and name != "storage/files.py"
    ]
    assert wrong == []


def test_advice_is_an_action() -> None:
    """What to do about a refusal is not "check it"."""
    idle = re.compile(r"; (check (it|the attack|the file|them)|see there)\b")
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and idle.search(node.value)
    ]
    assert wrong == []


load()
SHARED = inspect.getdoc(inspect.getmodule(__import__("medseg_attack.attacks", fromlist=["attacks"]))) or ""


@pytest.mark.parametrize("name", sorted(entries))
def test_every_field_is_explained(name: str) -> None:
    """In the docstring of its class or function, or among the fields that many attacks share."""
    entry = entries[name]
    text = entry.doc + (SHARED if entry.kind == "attack" else "")
    silent = [field for field in entry.fields if not re.search(rf"\b{re.escape(field)}\b", text)]
    assert silent == []


@pytest.mark.parametrize("name", sorted(entries))
def test_what_is_refused_is_documented(name: str) -> None:
    """A function that refuses an argument, or a class that refuses a field, has a paragraph `Raises`."""
    make = entries[name].make
    refusing = vars(make).get("__post_init__") if inspect.isclass(make) else make
    code = inspect.getsource(refusing) if refusing is not None else ""
    if re.search(r"raise InputError|\brequire\(", code):
        assert "Raises:" in entries[name].doc


def test_test_files_have_names_of_their_own() -> None:
    """Pytest imports them by name alone, so that of two only one would run."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
