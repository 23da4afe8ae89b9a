"""`medattack verify`: what a run wrote, read again."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.terminal import FAILED, Device, Json, ShowProgress
from medseg_attack.errors import InputError


@terminal.command
def verify(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs or of studies.")],
    json: Json = False,
    device: Device = "auto",
    progress: ShowProgress = True,
) -> None:
    """Read stored scans again: hash, geometry, budget, and Dice to the last pixel. Exit code 1 on any mismatch.

    Example: medattack verify medattack_runs/runs/uw-1a2b3c4d
    """
    from medseg_attack.runs.reading import find_runs

    folders = list(dict.fromkeys(find_runs(runs)))
    found: dict[Path, list[Any]] = {}
    with terminal.progress("verify", len(folders), show=progress) as advance:
        for folder in folders:
            found[folder] = _mismatches(folder, device)
            advance()
    if json:
        content = [
            {"run": str(run), "verified": not wrong, "mismatches": [{"case": w.what, "what": w.said} for w in wrong]}
            for run, wrong in found.items()
        ]
        terminal.print_json(content)
    else:
        for run, wrong in found.items():
            print(f"{'ok  ' if not wrong else 'FAIL'} {run}")
            for one in wrong:
                print(f"     {one.what}: {one.said}")
    if any(found.values()):
        raise typer.Exit(FAILED)


def _mismatches(folder: Path, device: str) -> list[Any]:
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.exports.verification import verify as verified
    from medseg_attack.files import read_json, read_yaml
    from medseg_attack.models.model_ref import resolve
    from medseg_attack.models.segmodel import frozen
    from medseg_attack.runtime import deterministic, pick_device

    if not (folder / "run.json").exists():
        raise InputError(f"expected a finished run in {folder}, got one without run.json; run its attack again")
    study = read_yaml(folder.parent.parent / "study.yaml")
    config, where = read_json(folder / "config.json"), pick_device(device)
    data = open_prepared(Path(study["data"]))
    if data.fingerprint != config["data"]:
        raise InputError(f"expected the data of {folder} in {data.root}, got another fingerprint; prepare it again")
    models = [resolve(name, data.task) for name in study["models"]]
    same = [model for model in models if model.weights == config["weights"]]
    if not same:
        raise InputError(f"expected the model of {folder} among {study['models']}, got others; {_restore(study)}")
    model = same[0].load(data.task, where)
    with frozen(model), deterministic(where):
        return list(verified(folder, data, model, where))


def _restore(study: Any) -> str:
    """What may have changed since the run: a checkpoint, or any file that a spec names."""
    from medseg_attack.models.checkpoints import CARD
    from medseg_attack.models.model_ref import files_of

    specs = [name for name in study["models"] if not (Path(name) / CARD).is_file()]
    files = [str(path) for name in specs for path in files_of(name)]
    if not files:
        return "restore the checkpoint"
    return f"restore what changed since ({', '.join(dict.fromkeys(files))}), or attack again into another --out"
