"""`medattack doctor`: is this machine ready?"""

import shutil
from typing import Any

import typer

from medseg_attack.cli import terminal
from medseg_attack.cli.terminal import FAILED, Home, Json


@terminal.command
def doctor(home: Home = None, json: Json = False) -> None:
    """Check versions, devices, decoders and disk; exit code 1 if something that is needed is missing.

    Example: medattack doctor --json
    """
    facts = _facts(home)
    if json:
        terminal.print_json(facts)
    else:
        for name, value in facts.items():
            terminal.out().print(f"[bold]{name:<12}[/] {_told(value)}")
    if not all(facts["decoders"].values()):
        raise typer.Exit(FAILED)


def _facts(home: Any) -> dict[str, Any]:
    import os

    import torch

    from medseg_attack.data.dicom_decoders import matrix
    from medseg_attack.runtime import pick_device, versions
    from medseg_attack.workspace import home as workspace_of

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
    return {True: "ok", False: "BROKEN"}.get(value, str(value)) if isinstance(value, bool) else str(value)
