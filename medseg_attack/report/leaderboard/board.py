"""The page of a leaderboard: a table of ranks for each data set and threat, and the entries that have none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_attack import __version__
from medseg_attack.errors import plural
from medseg_attack.metrics.empty import EMPTY_RULES
from medseg_attack.report.leaderboard.entries import Entry
from medseg_attack.report.page.templates import POLICY, css, environment, require_own_page
from medseg_attack.report.sheet import Sheet, between, number
from medseg_attack.stats.scores import MEAN
from medseg_attack.storage.files import whole

NAME = "index.html"


@dataclass(frozen=True)
class Board:
    """The entries on the same cases under the same threat.

    Attributes:
        ranked: the table of ranks; None where no entry has one.
        others: the table of entries without a rank, with the reasons; None where there are none.
    """

    title: str
    about: str
    ranked: Sheet | None
    others: Sheet | None


def boards(entries: Sequence[Entry]) -> list[Board]:
    """The boards of a leaderboard, in the order of data sets and threats."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in sorted(entries, key=lambda each: each.board):
        groups.setdefault(entry.board, []).append(entry)
    return [_board(sorted(group, key=lambda entry: -entry.adv)) for group in groups.values()]


def _board(entries: Sequence[Entry]) -> Board:
    """A board of entries, the best first."""
    first = entries[0]
    threat = first.threat
    ranked, others = [[e for e in entries if bool(e.obstacles) is is_out] for is_out in (False, True)]
    organs = list(dict.fromkeys(organ for entry in entries for organ in entry.organs))
    about = (
        f"{plural(first.units, first.unit)} of {plural(first.patients, 'patient')}, {first.split} split, cases "
        f"{first.cases}. Dice per {first.unit}. Empty masks: {EMPTY_RULES[first.empty]}."
    )
    title = f"{first.dataset}: {threat.ball} {threat.budget} {threat.unit}".strip()
    return Board(title, about, _ranked(ranked, organs) if ranked else None, _unranked(others) if others else None)


def _ranked(entries: Sequence[Entry], organs: Sequence[str]) -> Sheet:
    heads = ["rank", "model", "attacked", "95 % CI", "clean", *organs, "noise", "notes", "strongest attack"]
    rows = []
    for entry in entries:
        mean = entry.classes[MEAN]
        rank = 1 + sum(other.adv > entry.adv for other in entries)
        each = [_dice(entry.classes[organ].adv if organ in entry.classes else None) for organ in organs]
        numbers = [_dice(mean.adv), _ends(mean.low, mean.high), _dice(mean.clean), *each, _dice(mean.noise)]
        rows.append([str(rank), entry.model.name, *numbers, " ".join(entry.notes), mean.attack])
    caption = (
        "attacked: the mean Dice over organs that the strongest attack left, by which entries are ranked. The Dice of "
        "an organ is under the attack that left least of it. Where intervals overlap, a rank proves no difference."
    )
    return Sheet("Ranked", heads, rows, caption, left=2)


def _unranked(entries: Sequence[Entry]) -> Sheet:
    rows = [[e.model.name, "; ".join(e.obstacles), _dice(e.classes[MEAN].adv)] for e in entries]
    return Sheet("Without a rank", ["model", "reason", "attacked"], rows, left=2)


def _dice(value: float | None) -> str:
    return number(float("nan") if value is None else value)


def _ends(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else between(low, high)


def write_board(entries: Sequence[Entry], folder: Path) -> Path:
    """Writes the page of a leaderboard into a folder, and returns its file.

    Raises:
        InputError: a package is missing, or the file is there and no page of this package.
    """
    file = folder / NAME
    require_own_page(file)
    text = html(boards(entries))
    with whole(file) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return file


def html(all_boards: Sequence[Board]) -> str:
    """The text of the page, which has no scripts."""
    from markupsafe import Markup

    return (
        environment()
        .get_template("leaderboard/board.html")
        .render(version=__version__, policy=POLICY.format("'none'"), css=Markup(css()), boards=all_boards)
    )


def summary(all_boards: Sequence[Board]) -> Iterator[str]:
    """A line on each board for the terminal."""
    for board in all_boards:
        ranked, others = (0 if sheet is None else len(sheet.rows) for sheet in (board.ranked, board.others))
        yield f"{board.title}: {ranked} ranked, {others} without a rank"
