"""A card as Markdown and as HTML, both from the same sections."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medseg_attack import __version__, escaping
from medseg_attack.report.card.content import Card, Section
from medseg_attack.report.page.templates import POLICY, css, environment, require_own_page
from medseg_attack.report.sheet import Sheet, markdown
from medseg_attack.storage.files import require_own, whole

MARK = "<!-- medattack card"  # by which a card is known that may be written again
TO_FILL_IN = "to be filled in by whoever answers for the model"


def write_cards(cards: Sequence[Card], folder: Path) -> list[Path]:
    """Writes each card as Markdown and as HTML into a folder, and returns the files.

    Raises:
        InputError: one of the files is there and no card of this package.
    """
    texts = {folder / f"{card.name}{ending}": text for card in cards for ending, text in _texts(card)}
    for file in texts:
        if file.suffix == ".md":
            require_own(file, re.compile(re.escape(MARK.encode())))
        else:
            require_own_page(file)
    for file, text in texts.items():
        with whole(file) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
    return list(texts)


def _texts(card: Card) -> Iterator[tuple[str, str]]:
    yield ".md", card_markdown(card)
    yield ".html", card_html(card)


def card_markdown(card: Card) -> str:
    """The text of a card as GitHub's Markdown; all names in it are text."""
    shown = escaping.markdown
    lines = [f"{MARK}, medattack {__version__} -->", f"# {shown(card.title)}", ""]
    for section in card.sections:
        lines += [f"## {shown(section.title)}", "", f"*{shown(section.asked)}*", "", *_body(section)]
    lines += ["## What this card does not say", "", *(f"- {shown(limit)}" for limit in card.limits), ""]
    return "\n".join(lines)


def _body(section: Section) -> Iterator[str]:
    shown = escaping.markdown
    for line in section.lines:
        yield from (shown(line), "")
    if section.fields:
        yield from (
            f"**{shown(TO_FILL_IN)}:**",
            "",
            *(f"- {shown(field)}: \\_\\_\\_\\_\\_" for field in section.fields),
            "",
        )
    for sheet in section.sheets:
        yield from _table(sheet)
    if section.points:
        yield from (*(f"- {shown(point)}" for point in section.points), "")


def _table(sheet: Sheet) -> Iterator[str]:
    """The table without its title, which the section has, and its caption."""
    yield from markdown(sheet).rstrip().split("\n")[2:]
    yield ""


def card_html(card: Card) -> str:
    """The text of a card as one HTML file without scripts."""
    from markupsafe import Markup

    return (
        environment()
        .get_template("card/card.html")
        .render(
            version=__version__, policy=POLICY.format("'none'"), css=Markup(css()), card=card, to_fill_in=TO_FILL_IN
        )
    )
