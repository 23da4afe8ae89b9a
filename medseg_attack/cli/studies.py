"""Studies of the commands: opened, and what is said of one that is not finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_attack.cli import terminal
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    from medseg_attack.evaluation.runner import OpenedStudy


def open_study(
    fields: dict[str, Any],
    config: Path | None = None,
    *,
    home: Path | None,
    out: Path | None,
    device: str,
    trust: bool,
    options: Mapping[str, Any],
) -> "OpenedStudy":
    """The study with these fields, those of its file beneath; says what it is about.

    Args:
        options: of `evaluation.runner.RunOptions`, which is not loaded before the study is read.
    """
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs import workspace
    from medseg_attack.runs.study import read_study

    folder = workspace.home(home)
    use_trust(folder, trust)
    study = workspace.with_newest_data(folder, read_study(config, fields))  # reported before torch is loaded
    from medseg_attack.evaluation import opening
    from medseg_attack.evaluation.runner import RunOptions
    from medseg_attack.runtime import pick_device

    opened = opening.open_study(study, folder, pick_device(device), RunOptions(**options), out)
    terminal.say(opened.summary)
    for note in opened.notes:
        terminal.say(f"note: {note}")
    return opened


def say_unfinished(out: Path, shard: tuple[int, int], tables: str, json: bool) -> None:
    """Says which shards are still to come before there are `tables`; refuses if there is one shard alone."""
    k, n = shard
    if n == 1:
        raise InputError(f"expected all rows in {out}, got a part of them; run the same command again")
    terminal.say(f"shard {k}/{n} is done; run the others into {out}, the last one prints the {tables}")
    if json:
        terminal.print_json({"finished": False, "shard": [k, n], "out": str(out)})
