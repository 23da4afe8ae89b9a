"""The tables of `medattack extract`: what a stolen copy is worth, and what a monitor sees of the theft."""

from collections.abc import Mapping
from typing import Any

from medseg_attack.errors import plural
from medseg_attack.report.sheet import Sheet, between, number, percent
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


def monitor_sheet(watched: Mapping[str, Any], queries: int) -> Sheet:
    """The verdict of a monitor on a thief who does not know it, and on one who does.

    Args:
        watched: of `evaluation.monitoring.watch`, as a dictionary.
        queries: of the thief.
    """
    cover = watched["cover"]
    plain = ["as they are, non_adaptive", "0", str(queries), _after(watched["alarm"])]
    if cover is None:
        hidden = [f"any up to {watched['window'] - 1}", "-", "with each number"]
    else:
        hidden = [str(cover), str(queries * (1 + cover)), "none"]
    caption = (
        f"A mean of {watched['window']} queries that is too far from the owner's patients raises the alarm. Of streams "
        f"of the owner's test patients, as long as that of the thief, {percent(watched['false_alarms'])} raise false "
        "alarms. The thief who knows the monitor asks about usual scans before each query, the fewest that hide it, "
        "and learns the same copy for more queries; the owner's test patients stand for these scans."
    )
    columns = ["queries", "usual before each", "queries in all", "alarm after"]
    return Sheet("Monitor of the queries", columns, [plain, ["hidden among usual ones", *hidden]], caption, left=1)


def _after(alarm: int) -> str:
    return str(alarm) if alarm else "none"
