"""The state of a study in words: a line, a table of its processes and one of its runs; or as JSON."""

import math
import time
from typing import Any

from medseg_attack.errors import duration
from medseg_attack.report.progress.state import StudyState, WorkerState
from medseg_attack.report.sheet import Sheet, number


def headline(state: StudyState) -> str:
    """Cases done, rate, time left and Dice so far, in a line."""
    total = state.total
    share = f" of {total} cases ({math.floor(100 * state.cases / max(total, 1))} %)" if total is not None else " cases"
    facts = [f"{state.cases}{share}"]
    if state.is_finished:
        facts.append("finished")
    elif not any(each.worker.state == "at work" for each in state.workers):
        facts.append("nobody is at work: wait for jobs that are queued, else run the command that began it again")
    elif state.rate > 0:
        facts += [f"{state.rate:.3g} cases/s", f"{duration(state.seconds_left)} left"]
    done = [run for run in state.runs if run.parts]
    if done:
        clean, adv = (sum(scores) / len(done) for scores in zip(*((run.clean, run.adv) for run in done), strict=True))
        facts.append(f"Dice {number(adv)}, clean {number(clean)}")
    return "; ".join(facts)


def worker_sheet(state: StudyState) -> Sheet:
    """The processes that work on a study, or did; of a part that was begun again, the newest."""
    living = {each.worker.record.part for each in state.workers if each.worker.state != "lost"}
    shown = [w for w in state.workers if w.worker.state != "lost" or w.worker.record.part not in living]
    columns = ("worker", "part", "device", "state", "sign of life", "last wrote", "cases")
    return Sheet("workers", columns, [_worker_row(each) for each in shown], left=4)


def _worker_row(each: WorkerState) -> list[str]:
    record, state = each.worker.record, each.worker.state
    ended = "" if record.ended is None else f" {clock(record.ended)}"
    wrote = "-" if each.written is None else f"{duration(max(time.time() - each.written, 0))} ago"
    alive = "-" if state == "ended" else f"{duration(each.worker.silence)} ago"
    return [each.worker.name, record.part, record.device, f"{state}{ended}", alive, wrote, str(each.cases)]


def run_sheet(state: StudyState) -> Sheet:
    """The runs of a study: cases done, and mean Dice of the scans that are done."""
    rows = [
        [
            run.name,
            "finished" if run.is_finished else "begun" if run.parts else "-",
            f"{run.cases}/{'?' if run.total is None else run.total}",
            number(run.clean),
            number(run.adv),
        ]
        for run in state.runs
    ]
    return Sheet("runs", ("run", "state", "cases", "clean Dice", "Dice"), rows, left=2)


def record(state: StudyState) -> dict[str, Any]:
    """The state as JSON holds it; what is not known is null."""
    return {
        "folder": str(state.folder),
        "finished": state.is_finished,
        "cases": state.cases,
        "total": state.total,
        "rate": _known(state.rate),
        "seconds_left": _known(state.seconds_left),
        "workers": [
            {
                "worker": each.worker.name,
                "part": each.worker.record.part,
                "device": each.worker.record.device,
                "state": each.worker.state,
                "silence": each.worker.silence,
                "written": each.written,
                "cases": each.cases,
            }
            for each in state.workers
        ],
        "runs": [
            {
                "run": run.name,
                "finished": run.is_finished,
                "cases": run.cases,
                "total": run.total,
                "dice_clean": _known(run.clean),
                "dice_adv": _known(run.adv),
            }
            for run in state.runs
        ],
    }


def clock(seconds: float) -> str:
    """A time of day, of this machine."""
    return time.strftime("%H:%M", time.localtime(seconds))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
