"""`medattack doctor`: is this machine ready, and is this model read as it is meant?"""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.terminal import FAILED, Device, Home, Json, escaped


@terminal.command
def doctor(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Look at this model instead: a trained one, or 'own(...)'.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="For --model: prepared data set. [default: the newest]", show_default=False),
    ] = None,
    device: Device = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Check versions, devices, decoders and disk, or what a model expects and does; exit code 1 if something is wrong.

    Example: medattack doctor --model "own('net.py:build', weights='net.pth')" --data medattack_runs/data/acdc
    """
    if model:
        _look_at(model, data, home, device, json)
        return
    facts = _facts(home)
    if json:
        terminal.print_json(facts)
    else:
        for name, value in facts.items():
            terminal.out().print(f"[bold]{name:<12}[/] {_told(value)}")
    if not all(facts["decoders"].values()):
        raise typer.Exit(FAILED)


def _look_at(name: str, data: Path | None, home: Path | None, device: str, json: bool) -> None:
    """Facts and flags of a model on a few cases of the test split."""
    from medseg_attack.checks.model_profile import profile
    from medseg_attack.cli.attack import named
    from medseg_attack.data.prepared.reading import open_prepared
    from medseg_attack.data.prepared.subsets import informative
    from medseg_attack.models.model_ref import resolve
    from medseg_attack.models.segmodel import frozen
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.runs.workspace import newest_data
    from medseg_attack.runtime import pick_device
    from medseg_attack.types import Batch

    workspace = workspace_of(home)
    label = named(workspace, name)
    source = open_prepared(data or newest_data(workspace))
    found, where = resolve(label, source.task), pick_device(device)
    model = found.load(source.task, where)
    cases = informative(source, source.refs("test", dims=found.dims))
    with frozen(model):
        facts, flags = profile(model, Batch.of(cases, where))
    about = {"model": found.label, "weights": f"{found.card['n_parameters']:,}", "cases": [case.id for case in cases]}
    facts = about | facts
    if json:
        terminal.print_json(facts | {"flags": [one.record() for one in flags]})
    else:
        for fact, value in facts.items():
            terminal.out().print(f"[bold]{fact:<20}[/] {_told(value)}", highlight=False)
        terminal.print_flags(flags, none="No flag was raised: nothing speaks against measuring this model.")
    if any(one.flag.verdict == "invalid" for one in flags):
        raise typer.Exit(FAILED)


def _facts(home: Any) -> dict[str, Any]:
    import os

    import torch

    from medseg_attack.data.formats.dicom.decoders import matrix
    from medseg_attack.runs.workspace import home as workspace_of
    from medseg_attack.runtime import pick_device, versions

    workspace = workspace_of(home).absolute()
    there = next(folder for folder in (workspace, *workspace.parents) if folder.exists())
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MEDATTACK_")}
    return {
        "versions": versions(),
        "device": {"auto picks": str(pick_device()), "GPUs": gpus, "CPU threads": torch.get_num_threads()},
        "decoders": _decoders(),
        "DICOM": matrix(),
        "disk": {"workspace": str(workspace), "free GB": round(shutil.disk_usage(there).free / 1e9, 1)},
        "environment": environment,
    }


def _decoders() -> dict[str, bool]:
    """Whether a 16-bit PNG and a compressed NIfTI survive being written and read here."""
    import io

    import nibabel
    import numpy as np
    from PIL import Image

    pixels = np.array([[0, 258], [40000, 65535]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    png = np.array_equal(np.asarray(Image.open(stream)), pixels)
    volume = nibabel.Nifti1Image(pixels.astype(np.int32)[..., None], np.eye(4))
    nifti = np.array_equal(nibabel.Nifti1Image.from_bytes(volume.to_bytes()).dataobj, volume.dataobj)
    return {"PNG, 16 bit": png, "NIfTI": nifti}


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, float):
        return f"{value:.3f}"
    return {True: "ok", False: "BROKEN"}.get(value, str(value)) if isinstance(value, bool) else escaped(str(value))
