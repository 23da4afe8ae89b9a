"""Studies of the commands: opened, launched elsewhere, and what is said of one that is not finished."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_attack.cli import terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import InputError, duration, plural

if TYPE_CHECKING:
    from medseg_attack.evaluation.costs.estimates import Estimate
    from medseg_attack.evaluation.studies.opened import OpenedStudy


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
        options: of `evaluation.studies.opened.RunOptions`, which is not loaded before the study is read.
    """
    from medseg_attack.models.trust import use_trust
    from medseg_attack.runs import workspace
    from medseg_attack.runs.study import read_study

    folder = workspace.home(home)
    use_trust(folder, trust)
    study = workspace.with_newest_data(folder, read_study(config, fields))  # reported before torch is loaded
    from medseg_attack.evaluation import opening
    from medseg_attack.evaluation.studies.opened import RunOptions
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


def print_plan(estimates: "Mapping[str, Estimate]", out: Path, json: bool) -> None:
    """Prints the runs of studies and what they would cost, as a table or as JSON.

    Args:
        estimates: by the part that a study is of what was asked for; "" where it is all of it.
        out: folder of the results.
    """
    from medseg_attack.evaluation.costs.estimates import added
    from medseg_attack.registry import spec
    from medseg_attack.report.sheet import Sheet
    from medseg_attack.threat.budgets import UNITS

    total = added(list(estimates.values()))
    if json:
        runs = [(part, run) for part, estimate in estimates.items() for run in estimate.runs]
        records = [({"part": part} if part else {}) | asdict(run) for part, run in runs]
        terminal.print_json(asdict(total) | {"runs": records})
        return
    columns = ["model", "attack", "loss", "eps", "cases", "forward passes", "backward passes", "time"]
    for part, estimate in estimates.items():
        rows = []
        for run in estimate.runs:
            between = "" if run.eps_unit in UNITS else " "
            eps = f"{run.eps:g}{between}{run.eps_unit}" if run.eps_unit else spec(run.eps)
            passes = f"{run.cases}", f"{run.case_forwards}", f"{run.case_backwards}"
            rows.append([run.model, run.attack, run.loss, eps, *passes, duration(run.seconds)])
        terminal.print_sheet(Sheet(part, columns, rows, left=4))
    checks = f", {duration(total.check_seconds)} of it checks before the first rows" if total.check_seconds else ""
    terminal.show(
        "Passes: per case, in full of attacks that stop when they succeed.",
        f"{plural(len(total.runs), 'run')} of {plural(total.cases, 'case')}: about {duration(total.seconds)}{checks}, "
        f"{total.memory_mb:.0f} MB of memory, {total.disk_mb:.1f} MB in {out}",
    )


@dataclass(frozen=True)
class Launch:
    """How other processes are to run a study.

    Attributes:
        launcher: slurm or ray.
        workers: number of parts; 0: as many as there are chunks, at most 16.
        settings: KEY=VALUE of the launcher.
    """

    launcher: str
    workers: int
    settings: tuple[str, ...]


def read_launch(
    launcher: str | None, workers: int, shard: str, slurm: Sequence[str], ray: Sequence[str]
) -> Launch | None:
    """How other processes are to run a study; None where this one does."""
    settings = {"slurm": tuple(slurm), "ray": tuple(ray)}
    for name, texts in settings.items():
        if texts and launcher != name:
            raise InputError(f"expected --launcher {name} beside --{name}, got {launcher or 'none'}; add it")
    if launcher is None:
        if workers:
            raise InputError("expected --launcher beside --workers, got none; add --launcher slurm or ray")
        return None
    if shard:
        raise InputError("expected --launcher without --shard, got both; say --workers N, which cuts the study itself")
    return Launch(launcher, workers, settings[launcher])


def launch_study(
    opened: "OpenedStudy", launch: Launch, home: Path | None, device: str, json: bool, progress: bool
) -> bool:
    """Has other processes run a study; whether they are done with it."""
    from medseg_attack.evaluation.launchers.jobs import jobs_of, read_settings
    from medseg_attack.evaluation.launchers.ray_tasks import compute
    from medseg_attack.evaluation.launchers.slurm import submit, wait
    from medseg_attack.runs import workspace

    settings = read_settings(launch.settings, f"--{launch.launcher}")
    by_model = launch.launcher == "ray"
    jobs = jobs_of(opened, workspace.home(home), device, launch.workers, by_model=by_model)
    submission = None if by_model else submit(jobs, settings)
    if submission:
        terminal.say(f"submitted {', '.join(submission.ids)}; logs in {opened.out / 'workers'}")
    if submission is None or submission.local_jobs:
        with progress_bar("parts", len(jobs), show=progress) as advance:
            for n_done in compute(jobs, settings) if submission is None else wait(submission, jobs):
                advance(n_done)
        return True
    if json:
        terminal.print_json({"finished": False, "jobs": list(submission.ids), "out": str(opened.out)})
    terminal.next_step(["watch", str(opened.out)])
    return False
