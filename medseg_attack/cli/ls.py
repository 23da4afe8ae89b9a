"""`medattack ls`: what is registered, and what the workspace holds."""

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Home, Json
from medseg_attack.cli.stored import STORED, print_stored
from medseg_attack.errors import InputError
from medseg_attack.registry import table

if TYPE_CHECKING:
    from medseg_attack.registry.declared import Declaration

# flags are declared on their checks, not registered
KINDS = {"criteria" if kind == "criterion" else f"{kind}s": kind for kind in (*table.KINDS, "flag")}
KINDS |= dict.fromkeys(STORED, "")  # folders of the workspace
SAVED = ("checkpoint", "others")  # models that stand for trained ones


@terminal.command
def ls(
    what: Annotated[
        str,
        typer.Argument(
            help="Kind to list: attacks, defences, certificates, detectors, objectives, goals, criteria, balls, "
            "poisons, models, networks, datasets, metrics, factors or flags; or of the workspace: runs, data, trained "
            "or baselines."
        ),
    ],
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show paper, threat model, norm and passes of every attack, or paper, passes and adaptive attack of "
            "every defence.",
        ),
    ] = False,
    json: Json = False,
    home: Home = None,
) -> None:
    """List what there is by name, or what the workspace holds.

    Example: medattack ls attacks --explain

    Example: medattack ls runs
    """
    if what not in KINDS:
        raise InputError(f"expected one of {', '.join(KINDS)}, got {what!r}; choose one")
    if explain and what not in ("attacks", "defences"):
        raise InputError(f"expected attacks or defences for --explain, got {what}; drop it")
    if what == "flags":
        _print_flags(json)
        return
    if what in STORED:
        from medseg_attack.runs.workspace import home as workspace_of

        print_stored(what, workspace_of(home), json)
        return
    from medseg_attack.registry.declared import declarations

    kind = KINDS[what]
    entries = declarations(kind)
    rows: list[dict[str, Any]] = [
        {"name": entry.name, "options": entry.options_line, "what": entry.summary} for entry in entries
    ]
    if explain:
        rows = _explained(entries, rows)
    if kind == "model":
        from medseg_attack.models.networks.smp import count_parameters

        rows = [row | {"parameters": count_parameters(row["name"])} for row in rows if row["name"] not in SAVED]
    if json:
        terminal.print_json(rows)
        return
    if kind in ("attack", "defence"):
        _print_families(entries, rows)
        return
    _print_rows(rows)


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    listing = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in rows[0]:
        listing.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for row in rows:
        listing.add_row(*(f"{value:,}" if isinstance(value, int) else value or "" for value in row.values()))
    consoles.out().print(listing)


def _explained(entries: Sequence["Declaration"], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the facts that a reader asks for before trusting an attack, or a defence."""
    if entries[0].kind == "attack":
        from medseg_attack.checks.attack_profile import profile

        attacks = {entry.name: entry for entry in entries}
        return [dict(profile(name, attacks)) for name in attacks]
    facts = [
        {"paper": entry.paper, "cost": entry.facts.get("cost", ""), "attacked_with": entry.facts["attacked_with"]}
        for entry in entries
    ]
    return [row | fact for row, fact in zip(rows, facts, strict=True)]


def _print_flags(json: bool) -> None:
    """Codes, verdicts and titles of all flags; `medattack explain CODE` says more."""
    from rich import box
    from rich.table import Table

    from medseg_attack.checks.explanations import explanations

    rows = [{"code": flag.code, "verdict": flag.verdict, "title": flag.title} for flag in explanations().values()]
    if json:
        terminal.print_json(rows)
        return
    listing = Table(*rows[0], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        listing.add_row(*row.values())
    consoles.out().print(listing)
    terminal.next_step(["explain", "MA007"])


def _print_families(entries: Sequence["Declaration"], rows: Sequence[dict[str, Any]]) -> None:
    """Attacks or defences by family, controls first: of each its name, what it does or costs, and its options."""
    from rich.table import Table
    from rich.text import Text

    width = max(len(entry.name) for entry in entries)
    for family in sorted({entry.family for entry in entries}, key=lambda family: (family != "controls", family)):
        members = [(entry, row) for entry, row in zip(entries, rows, strict=True) if entry.family == family]
        title = members[0][0].family_title
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        table.add_column(width=width, no_wrap=True)
        table.add_column(overflow="fold")
        for entry, row in members:
            text = row["what"]
            if "passes" in row:
                text = f"{row['threat']}; norm {row['norm']}; passes {row['passes']}; {row['paper']}"
            if "cost" in row:
                text = f"passes {row['cost']}; attacked with {row['attacked_with']}; {row['paper']}"
            options = row.get("options", row.get("defaults", ""))
            table.add_row(entry.name, Text.assemble(text, (f"\n{options}" if options else "", "dim")))
        consoles.out().print(table)
        consoles.out().print()
    if entries[0].kind == "attack":
        _print_shared_fields()


def _print_shared_fields() -> None:
    """Prints the options that many attacks have and their meaning, from the docstring of their package."""
    from rich.table import Table

    from medseg_attack.registry.declared import docstring

    text = docstring("medseg_attack.attacks").partition("Fields that many attacks share:\n")[2]
    title = "Options that many attacks share"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for field in re.split(r"\n(?! )", inspect.cleandoc(text)):
        name, _, meaning = " ".join(field.split()).partition(": ")
        table.add_row(name, meaning)
    consoles.out().print(table)
