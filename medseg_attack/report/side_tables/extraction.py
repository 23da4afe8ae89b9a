"""The table of `medattack extract`: what a stolen copy is worth."""

from collections.abc import Mapping

from medseg_attack.errors import plural
from medseg_attack.report.sheet import Sheet, between, number
from medseg_attack.stats.patients import warning

ROWS = {
    "fidelity": "copy with victim (fidelity)",
    "student": "copy with truth",
    "victim": "victim with truth",
    "transferred": "victim, images attacked for the copy",
    "own": "victim, images attacked for itself",
}


def extraction_sheet(measured: Mapping[str, float], title: str) -> Sheet:
    """The measures of a copy as a table.

    Args:
        measured: of `evaluation.extracting.worth`.
    """
    rows = [
        [words, number(measured[name]), between(measured[f"{name}_low"], measured[f"{name}_high"])]
        for name, words in ROWS.items()
    ]
    rows.append(["transfer ratio", number(measured["transfer"]), "-"])
    n = int(measured["patients"])
    caption = (
        f"Dice per patient, mean over classes, {plural(n, 'test patient')}; interval: Gaffke over patients. transfer "
        "ratio: Dice that images made for the copy take, as a share of what images made for the victim take. "
        f"{warning(n)}"
    )
    return Sheet(title, ["Dice of", "mean", "95 % CI"], rows, caption.strip(), left=1)
