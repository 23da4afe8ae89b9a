"""Tables of what the workspace holds."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_attack.cli import consoles, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from medseg_attack.runs.workspace import Item

STORED = {"data": "data", "trained": "models", "runs": "runs", "baselines": "baselines"}  # to folders of the workspace


def print_stored(what: str, workspace: Path, json: bool) -> None:
    """Prints what the workspace holds of a kind, the newest last."""
    if what == "baselines":
        _print_baselines(workspace, json)
        return
    from medseg_attack.runs.workspace import items

    listed = items(workspace, STORED[what])
    if json:
        terminal.print_json([_facts(item) for item in listed])
    elif listed:
        consoles.out().print(stored_table(listed))
    else:
        terminal.say(f"nothing in {workspace / STORED[what]}")


def stored_table(listed: "Sequence[Item]") -> "Table":
    """Name, date, size, state and content of folders of the workspace."""
    rows = [
        (f"{item.kind}/{item.name}", _date(item.changed), megabytes(item.size), _state(item), item.content)
        for item in listed
    ]
    return _table(("name", "changed", "size", "finished", "content"), rows, right=("size",))


def megabytes(size: int) -> str:
    """A number of bytes in MB.

    >>> megabytes(1_234_567), megabytes(12)
    ('1.2 MB', '0.0 MB')
    """
    return f"{size / 1e6:,.1f} MB"


def _state(item: "Item") -> str:
    return ("a link, " if item.path.is_symlink() else "") + ("yes" if item.finished else "no")


def _facts(item: "Item") -> dict[str, Any]:
    facts = {"name": item.name, "kind": item.kind, "path": str(item.path), "changed": _date(item.changed)}
    return facts | {"bytes": item.size, "finished": item.finished, "content": item.content}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _print_baselines(workspace: Path, json: bool) -> None:
    """A row for each run of each baseline, as it was printed when it was saved."""
    from medseg_attack.gate.baselines import history
    from medseg_attack.report.tables.summaries import budget

    rows = [
        {"name": saved.name, "number": saved.number, "saved": saved.saved, **run}
        for saved in history(workspace)
        for run in saved.runs
    ]
    if json:
        terminal.print_json(rows)
        return
    if not rows:
        terminal.say(f"nothing in {workspace / 'baselines'}")
        return
    columns = {"mean_clean": "clean", "mean_adv": "adversarial"}
    keys = ("name", "number", "saved", "model", "attack", "loss", "eps", "mean_clean", "mean_adv", "patients")
    shown = [row | {"saved": row["saved"][:16].replace("T", " "), "eps": budget(row)} for row in rows]
    texts = [[_number(row.get(key)) for key in keys] for row in shown]
    consoles.out().print(_table([columns.get(key, key) for key in keys], texts, right=keys[6:]))


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from medseg_attack.escaping import visible

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(text)) for text in row))
    return table
