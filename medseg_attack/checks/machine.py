"""Is this machine ready? Versions, devices, decoders and disk."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from medseg_attack.data.formats.dicom.decoders import matrix
from medseg_attack.runtime import pick_device, versions


def machine_facts(workspace: Path) -> dict[str, Any]:
    """Versions, devices, working decoders, free disk and environment variables, as `medattack doctor` prints them."""
    workspace = workspace.absolute()
    existing = next(folder for folder in (workspace, *workspace.parents) if folder.exists())
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MEDATTACK_")}
    return {
        "versions": versions(),
        "device": {"auto picks": str(pick_device()), "GPUs": gpus, "CPU threads": torch.get_num_threads()},
        "decoders": _decoders(),
        "DICOM": matrix(),
        "disk": {"workspace": str(workspace), "free GB": round(shutil.disk_usage(existing).free / 1e9, 1)},
        "environment": environment,
    }


def _decoders() -> dict[str, bool]:
    """Whether a 16-bit PNG and a compressed NIfTI survive being written and read here."""
    pixels = np.array([[0, 258], [40000, 65535]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    png = np.array_equal(np.asarray(Image.open(stream)), pixels)
    volume = nibabel.Nifti1Image(pixels.astype(np.int32)[..., None], np.eye(4))
    nifti = np.array_equal(nibabel.Nifti1Image.from_bytes(volume.to_bytes()).dataobj, volume.dataobj)
    return {"PNG, 16 bit": png, "NIfTI": nifti}
