"""Help texts, of every command: no default is lost, nothing is cut off, and nothing heavy is loaded."""

import subprocess
import sys
from typing import Any

import pytest
import typer
from typer._click.exceptions import BadParameter
from typer.testing import CliRunner

from medseg_attack.cli import app

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)


def help_text(command: str, width: int) -> str:
    """The help of a command, on one line."""
    words = [command, "--help"] if command else ["--help"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= width
    return " ".join(result.stdout.split())


def options(command: str) -> list[Any]:
    return [option for option in GROUP.commands[command].params if option.name != "help"]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_and_every_default_is_shown(command: str, width: int) -> None:
    text = help_text(command, width)
    for option in options(command):
        assert option.help, option.name
        assert " ".join(option.help.split()) in text
        if isinstance(option.show_default, str):
            assert f"default: ({option.show_default})" in text
        elif option.show_default and option.default and not isinstance(option.default, bool):
            assert f"default: {option.default}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_may_be_left_out_says_what_it_is_then(command: str) -> None:
    """An option whose default is empty tells what stands for it, unless without it nothing is done."""
    nothing_is_done = {
        "attack": {"config", "model"},
        "certify": {"model", "csv", "plot"},
        "compare": {
            "reference",
            "save_as",
            "fail_if",
            "paired",
            "ejection_fraction",
            "factor",
            "csv",
            "plot",
            "html",
            "junit",
            "badge",
        },
        "defend": {"csv"},
        "detect": {"csv"},
        "screen": {"model", "csv"},
        "doctor": {"model"},
        "evaluate": {"model", "csv"},
        "prepare": {"labels"},
        "readers": {"out", "score"},  # one of the two is needed
    }
    silent = {
        option.name
        for option in options(command)
        if not option.required and option.default in (None, "", []) and not isinstance(option.show_default, str)
    }
    assert silent == nothing_is_done.get(command, set())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_text_is_a_sentence_without_markup(command: str) -> None:
    for option in options(command):
        text = option.help
        assert "[" not in text, option.name
        assert text[0].isupper() or text.startswith("k/N"), option.name
        assert text.endswith("."), option.name
        assert text.split()[0] not in ("Of", "By", "As", "To", "In", "Where", "What"), option.name


def test_the_list_of_commands_has_whole_sentences() -> None:
    text = help_text("", 80)
    assert all(f" {command} " in text for command in COMMANDS)
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    words = [command, "--help"] if command else ["--help"]
    code = (
        "import sys; from medseg_attack.cli import app; "
        f"app({words}, standalone_mode=False); sys.exit(bool({{'torch', 'numpy', 'pandas'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if any(param.required for param in GROUP.commands[name].params)]
)
def test_a_line_that_lacks_a_word_is_answered_with_one_that_has_it(command: str) -> None:
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 2
    assert f"Example: medattack {command} " in result.output


def test_an_argument_that_is_lacking_has_its_choices_before_the_example() -> None:
    *_, last = CliRunner().invoke(app, ["new"]).output.splitlines()
    assert last.endswith("Missing argument 'what'. Choose from: study, attack, network. Example: medattack new study")


def test_no_option_of_any_command_takes_a_number_that_is_not_finite() -> None:
    """A number that is compared with its bounds alone lets NaN through, as every comparison with it is false."""
    tried = 0
    for name, command in GROUP.commands.items():
        context = typer.Context(command, info_name=name)
        for param in command.get_params(context):
            if "float" not in str(param.type_descriptor.annotation):
                continue
            tried += 1
            for text in ("nan", "inf", "-inf", "1e999"):
                with pytest.raises(BadParameter, match=r"Input should be|expected a finite number, got "):
                    param.process_value(context, [text] if param.multiple or param.nargs != 1 else text)
    assert tried > 10
