"""What is printed as the next command can be typed into a shell, whatever folders and files are called."""

import shlex
from pathlib import Path

import pytest
from helpers.command import medattack, next_words
from helpers.own_parts import new_attack
from helpers.own_parts import restored as restored

from medseg_attack.cli import terminal


@pytest.mark.parametrize("name", ["net.py", "a net.py", "it's (1).py", '$(touch x);"y".py'])
def test_files_that_new_writes(name: str, tmp_path: Path) -> None:
    path = {what: tmp_path / what / name for what in ("study", "attack", "network")}
    words = {what: next_words(medattack("new", what, file)) for what, file in path.items()}
    spec = repr(f"{path['network']}:build")
    assert words["study"] == ["medattack", "attack", "--config", str(path["study"]), "--plan"]
    assert words["attack"] == ["python", str(path["attack"])]
    assert words["network"] == ["medattack", "doctor", "--model", f"own({spec})"]


def test_folders_of_prepared_and_of_poisoned_data(tmp_path: Path) -> None:
    data, poisoned = tmp_path / "my data", tmp_path / "x; y's"
    prepared = medattack("prepare", tmp_path / "scans", "--format", "phantom(patients=8)", "--out", data)
    assert next_words(prepared) == ["medattack", "train", "--data", str(data), "--model", "unet_small"]
    result = medattack("poison", data, "relabel(shrink(1))", "--rho", "0.5", "--out", poisoned)
    assert next_words(result) == ["medattack", "train", "--data", str(poisoned), "--model", "unet_small"]


@pytest.mark.parametrize("named", ["typed", "in the environment", "nowhere"])
def test_the_next_command_is_in_the_workspace_that_was_typed(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDATTACK_HOME", raising=False)
    home = tmp_path / "my home"
    if named == "in the environment":
        monkeypatch.setenv("MEDATTACK_HOME", str(home))
    typed = ["--home", str(home)] if named == "typed" else []
    folder = home if named != "nowhere" else Path("medattack_runs")
    prepared = medattack("prepare", tmp_path / "scans", "--format", "phantom(patients=8)", *typed)
    data = folder / "data" / "phantom"
    assert next_words(prepared) == ["medattack", "train", "--data", str(data), "--model", "unet_small", *typed]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("my parts.py", ["python", "my parts.py"]),
        ("bin/medattack", ["medattack"]),
        ("medseg_attack/__main__.py", ["medattack"]),
    ],
)
def test_a_command_of_a_program_with_parts_of_its_own_is_one_of_that_program(
    program: str, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the next command and, after an interruption, the same one: medattack itself knows no such part."""
    monkeypatch.setattr("sys.argv", [program, "attack"])
    assert shlex.split(terminal.shell(["attack", "--loss", "mine"])) == ["medattack", "attack", "--loss", "mine"]
    new_attack(lambda *_: None)
    assert shlex.split(terminal.shell(["attack", "--loss", "mine"])) == [*typed, "attack", "--loss", "mine"]


def test_every_command_that_prints_the_next_one_goes_through_one_function() -> None:
    """Which adds --home: no command can forget it."""
    commands = Path(terminal.__file__).parent.glob("*.py")
    texts = {path.name: path.read_text() for path in commands if path.name != "terminal.py"}
    assert [name for name, text in texts.items() if "Next: " in text] == []
    assert [name for name, text in texts.items() if "print_next" in text] == ["new.py"]  # of a Python file
    assert terminal._with_home >= {"attack", "train", "compare", "prepare", "doctor"}
    assert "explain" not in terminal._with_home
