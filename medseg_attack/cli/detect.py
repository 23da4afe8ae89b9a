"""`medattack detect`: would we notice? A detector with a rate of false alarms, on attacks that know it or do not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg_attack.cli import options, terminal
from medseg_attack.cli.progress import progress_bar
from medseg_attack.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medseg_attack.detectors.base import Calibrated
    from medseg_attack.evaluation.detection.scoring import Detection


@terminal.command
def detect(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders of runs, of one model on test patients.")],
    detector: Annotated[
        list[str] | None,
        options.repeated("--detector", help="Detector with its options; medattack ls detectors.", default="entropy"),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            "--false-alarms",
            help="Rate of false alarms that the calibration patients must be able to promise.",
            show_default="0.05, or the least that they can",
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        options.repeated(
            "--weight", help="Weight of the score in attacks that know the detector.", default="0.1, 1 and 10"
        ),
    ] = None,
    knowing: Annotated[
        list[str] | None,
        options.repeated(
            "--knowing",
            help="Way in which an attack knows the detector: evading, orthogonal, selective, hfc or feature_matching.",
            default="evading",
        ),
    ] = None,
    adaptive: Annotated[
        bool, typer.Option("--adaptive/--non-adaptive", help="Run each attack again with knowledge of the detector.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the fitted detectors.", show_default="<home>/detectors"),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write score and p-value of every patient to this file.", show_default=False),
    ] = None,
    batch_size: options.BatchSize = 32,
    json: options.Json = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    home: options.Home = None,
    trust: options.Trust = False,
    progress: options.ShowProgress = True,
) -> None:
    """Say whether attacks would be noticed. A detector is fitted on training patients and calibrated on validation
    patients; it is shown the images of runs, clean ones, noise of the same size, and attacks that know it.

    Example: medattack detect medattack_runs/runs/acdc-1a2b3c4d --detector feature_squeezing --detector entropy
    """
    from medseg_attack.models.trust import use_trust
    from medseg_attack.report.sheet import require_own_csv
    from medseg_attack.runs import workspace
    from medseg_attack.stats.alarms import least_rate

    if csv is not None:
        require_own_csv(csv)
    if not adaptive and (option := "--knowing" if knowing else "--weight" if weight else ""):
        raise InputError(f"expected {option} without --non-adaptive, got both; drop one of them")
    folder = workspace.home(home)
    use_trust(folder, trust)
    from medseg_attack import registry
    from medseg_attack.evaluation.detection.evaders import evaders
    from medseg_attack.evaluation.detection.scoring import Detection
    from medseg_attack.runtime import pick_device
    from medseg_attack.storage.paths import require_outside

    named = (registry.build(text, "detector") for text in detector or ["entropy"])
    built = {registry.spec(each): each for each in named}.values()
    weights = list(dict.fromkeys(weight or ()))
    knowing_attacks = evaders(knowing or ["evading"], weights) if adaptive else ()
    how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "evaders": knowing_attacks}
    where = pick_device(device)
    todo = [Detection.open(each, runs, where, **how) for each in built]
    if false_alarms is not None:
        todo[0].require_rate(false_alarms)
    data, target = todo[0].data, out or folder / "detectors"
    require_outside(target, *data.sources)
    terminal.say(f"data {todo[0].data.root}; model {todo[0].model_label}; on {where}")
    content: list[dict[str, Any]] = []
    tables: list[pd.DataFrame] = []
    captions: set[str] = set()  # which the tables of several detectors have in common
    for each in todo:
        name = registry.spec(each.detector)
        with progress_bar(name, each.steps, show=progress) as advance:
            fitted = each.fit(advance)
            scores = each.score(fitted, advance)
        content.append(_print(each, name, fitted, scores, tables, captions, json))
        content[-1]["file"] = str(_save(each, name, fitted, target, content[-1]))
    if json:
        terminal.print_json({"detectors": content})
    if csv is not None:  # what may fail comes last
        _write_csv(tables, csv)
    rate = least_rate(content[-1]["calibration_patients"])
    words = ["screen", "YOUR_SCANS", "--detector", content[-1]["file"], "--model", todo[-1].model_ref.name]
    terminal.next_step([*words, *(["--false-alarms", f"{rate:g}"] if rate > 0.05 else [])])


def _print(
    todo: "Detection",
    name: str,
    fitted: "Calibrated",
    scores: "pd.DataFrame",
    tables: "list[pd.DataFrame]",
    captions: set[str],
    json: bool,
) -> dict[str, Any]:
    """Prints the table of one detector, or returns it for JSON; adds the scores of its patients to `tables`, and the
    captions that it prints to `captions`.
    """
    from medseg_attack.evaluation.detection.scoring import per_patient
    from medseg_attack.report.detectors import NON_ADAPTIVE, detector_sheet, goal_sheet, has_goals, is_adaptive
    from medseg_attack.report.sheet import each_caption_once
    from medseg_attack.stats.alarms import alarm_table, two_sided_rate, verdict

    patients = per_patient(scores, fitted)
    tables.append(patients.assign(detector=name, model=todo.model_label))
    table = alarm_table(patients, len(fitted.calibration))
    known = "" if is_adaptive(table) else f" ({NON_ADAPTIVE})"
    if not json:
        n = len(fitted.calibration)
        title = f"{name}{known} of {todo.model_label} on {todo.data.name}"
        sheets = [detector_sheet(table, title=title, n_calibration=n, partial=todo.is_partial)]
        sheets += [goal_sheet(table, title=f"{title}, by goal", n_calibration=n)] if has_goals(table) else []
        for sheet in each_caption_once(sheets, captions):
            terminal.print_sheet(sheet)
        terminal.conclude(f"{name} of {todo.model_label}: {verdict(table, len(fitted.calibration))}")
    return {
        "model": todo.model_label,
        "data": todo.data.name,
        "detector": name,
        "adaptive": is_adaptive(table),
        "verdict": verdict(table, len(fitted.calibration)),
        "calibration_patients": len(fitted.calibration),
        "partial": todo.is_partial,
        "two_sided_rate": two_sided_rate(len(fitted.calibration)),
        "rows": table.to_dict("records"),
    }


def _save(todo: "Detection", name: str, fitted: "Calibrated", folder: Path, table: dict[str, Any]) -> Path:
    """Writes a detector and, beside it, its table for `medattack report`."""
    from medseg_attack.detectors.files import save_detector
    from medseg_attack.runs.grid import safe
    from medseg_attack.runs.stored_files import DETECTION_ENDING
    from medseg_attack.storage.json_files import plain, write_json

    file = folder / f"{safe(name)[:60]}-{todo.model_ref.weights_hash[:6]}.safetensors"
    fingerprint = save_detector(file, fitted, todo.facts)
    write_json(file.with_name(file.stem + DETECTION_ENDING), plain(table))
    terminal.say(f"wrote {file} ({fingerprint[:12]})")
    return file


def _write_csv(tables: "list[pd.DataFrame]", csv: Path) -> None:
    import pandas as pd

    from medseg_attack.report.sheet import write_csv

    columns = ["run", "group", "case", "detector", "model", "kind", "attack", "loss", "goal", "eps", "score", "p"]
    columns += ["p_two_sided", "dice_clean", "dice"]
    write_csv(pd.concat(tables, ignore_index=True)[columns], csv)
    terminal.say(f"wrote {csv}")
