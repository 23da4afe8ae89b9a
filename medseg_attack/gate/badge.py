"""A badge: the adversarial Dice of the worst attack, and whether the gate is passed, as a picture. No torch in here."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medseg_attack.errors import InputError
from medseg_attack.escaping import visible
from medseg_attack.gate.verdicts import Verdict
from medseg_attack.storage.files import require_own, whole

LABEL = "adversarial Dice"
COLOURS = {"passes": "#2e7d32", "fails": "#c62828", "": "#546e7a"}  # white text on each has a contrast above 4.5
WIDTH_OF_LETTER, MARGIN, HEIGHT = 7, 7, 20  # pixels
MARK = re.compile(rb"<svg[^>]*data-by=.medattack")


def badge(table: pd.DataFrame, verdicts: Sequence[Verdict]) -> str:
    """The badge as SVG.

    Args:
        table: the summary of the runs; of them the attack of the lowest mean Dice is shown.
        verdicts: of the gate; () where it has no rules.
    """
    attacks = table[table["role"] == "attack"]
    if attacks.empty:
        raise InputError("expected runs of attacks for a badge, got controls alone; add a run of an attack")
    verdict = ("fails" if any(each.failed for each in verdicts) else "passes") if verdicts else ""
    text = f"{attacks['mean_adv'].min():.3f}" + (f", gate {verdict}" if verdict else "")
    widths = [WIDTH_OF_LETTER * len(part) + 2 * MARGIN for part in (LABEL, text)]
    title = html.escape(visible(f"{LABEL}: {text}"))
    parts = [
        f'<rect x="{x}" width="{width}" height="{HEIGHT}" fill="{colour}"/>'
        f'<text x="{x + width / 2}" y="14" fill="#fff" text-anchor="middle">{html.escape(part)}</text>'
        for x, width, colour, part in zip(
            (0, widths[0]), widths, ("#37474f", COLOURS[verdict]), (LABEL, text), strict=True
        )
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" data-by="medattack" role="img" aria-label="{title}" '
        f'width="{sum(widths)}" height="{HEIGHT}" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f"<title>{title}</title>{''.join(parts)}</svg>\n"
    )


def write_badge(text: str, file: Path) -> None:
    """Writes a badge.

    Raises:
        InputError: the file is something else than a badge.
    """
    require_own_badge(file)
    with whole(file) as part:
        part.write_text(text, encoding="utf-8")


def require_own_badge(file: Path) -> None:
    """Refuses to overwrite what is no badge.

    Raises:
        InputError: the file holds something else.
    """
    require_own(file, MARK)
