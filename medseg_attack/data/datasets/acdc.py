"""ACDC (MICCAI 2017): short-axis cine cardiac MRI of end diastole and end systole, NIfTI.

SOURCE/training/patient001/patient001_frame01.nii.gz       the image
SOURCE/training/patient001/patient001_frame01_gt.nii.gz    its mask
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from medseg_attack.data.cohort.doubles import unique
from medseg_attack.data.cohort.patients import Named, patients
from medseg_attack.data.datasets.source import ScanFile, Source, require_folder
from medseg_attack.data.formats.folders import matching
from medseg_attack.data.formats.nifti import read_pair, stem
from medseg_attack.errors import InputError
from medseg_attack.registry import register, spec
from medseg_attack.types import Task

TASK = Task("acdc", ("background", "rv", "myocardium", "lv"), exclusive=True)
_SCAN = re.compile(r"(patient\d+)_frame\d+")


@register("acdc", kind="dataset")
@dataclass(frozen=True)
class ACDC:
    """ACDC cardiac MRI: right ventricle, myocardium and left ventricle, one class per voxel.

    SOURCE is the folder of the patients or the one above it. A frame without a mask is left out and named.

    Attributes:
        patient: pattern of the patients' names, or "folder"; see `cohort.patients`.
    """

    patient: str = ""

    def listing(self, root: Path) -> Source:
        """The frames that have a mask."""
        require_folder(root, "ACDC's training/patient001/...")
        paths = [path for path in matching(_patients(root), "patient*/*") if _SCAN.fullmatch(stem(path) or "")]
        images = unique(((stem(path) or "", path) for path in paths), "scan")
        named = {name: Named(name, path, name.partition("_")[0]) for name, path in images.items()}
        who = patients(named, self.patient, _patients(root), "by the first word of their files' names")
        scans, notes = [], list(who.warnings)
        for name, image in images.items():
            mask = image.with_name(image.name.replace(name, f"{name}_gt", 1))
            if os.path.lexists(mask):  # a link to nothing, say, is refused when it is read
                read = functools.partial(read_pair, name, image, mask, (0, 1, 2, 3))
                scans.append(ScanFile(name, who.groups[name], image, (image, mask), read))
            else:
                notes.append(f"{name} is left out: expected its mask {mask.name} beside it, got none")
        if not scans:
            raise InputError(
                f"expected patient001/patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz and so on "
                f"in {root}, got none; give the folder that holds training/ or the patients"
            )
        ordered = tuple(sorted(scans, key=lambda scan: scan.id))
        return Source(root, spec(self), TASK, ordered, tuple(notes), patient_rule=who.rule)


def _patients(root: Path) -> Path:
    return root / "training" if (root / "training").is_dir() else root
