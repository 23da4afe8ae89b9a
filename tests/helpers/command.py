"""The command line, run in this process."""

import shlex
from typing import Any

from typer.testing import CliRunner

from medseg_attack.cli import app


def medattack(*words: object, code: int = 0) -> Any:
    """Runs a command that is to exit with `code`; stdout and stderr apart."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"MEDATTACK_PROGRESS": "0"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def next_words(result: Any) -> list[str]:
    """The words that a shell makes of the last line on stderr, without "Next:"."""
    label, *words = shlex.split(result.stderr.splitlines()[-1])
    assert label == "Next:"
    return words
