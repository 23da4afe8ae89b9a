"""ACDC (MICCAI 2017): short-axis cine cardiac MRI of end diastole and end systole, NIfTI.

SOURCE/training/patient001/patient001_frame01.nii.gz       the image
SOURCE/training/patient001/patient001_frame01_gt.nii.gz    its mask
SOURCE/training/patient001/Info.cfg                        the frames of end diastole (ED: 1) and systole (ES: 12)
"""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from medseg_attack.data.cohort.doubles import unique
from medseg_attack.data.cohort.notes import left_out
from medseg_attack.data.cohort.patients import Named, patients
from medseg_attack.data.datasets.source import Source, require_folder, require_split
from medseg_attack.data.datasets.volumes import require_plane, scan_files, survey
from medseg_attack.data.formats.folders import matching
from medseg_attack.data.formats.label_values import LabelValues
from medseg_attack.data.formats.leaving_out import is_left_out, refuse_unknown
from medseg_attack.data.formats.nifti import read_pair, stem
from medseg_attack.errors import InputError
from medseg_attack.registry import register, spec
from medseg_attack.types import Phase, Task

TASK = Task("acdc", ("background", "rv", "myocardium", "lv"), exclusive=True)
PHASES: tuple[Phase, ...] = ("ED", "ES")
_SCAN = re.compile(r"(patient\d+)_frame\d+")


@register("acdc", kind="dataset")
@dataclass(frozen=True)
class ACDC:
    """ACDC cardiac MRI: right ventricle, myocardium and left ventricle, one class per voxel.

    SOURCE is the folder of the patients or the one above it. A frame without a mask is left out and named.

    Attributes:
        patient: pattern of the patients' names, or "folder"; see `cohort.patients`.
        plane: that of the slices, axial, coronal, sagittal, or acquired for each scan's own; "": that of most scans.
        split_by: "folder": training/ is trained on and testing/ is the test split; "": testing/ is left out.
    """

    patient: str = ""
    plane: str = ""
    split_by: str = ""

    def __post_init__(self) -> None:
        require_split(self.split_by)
        require_plane(self.plane)

    def listing(self, root: Path) -> Source:
        """The frames that have a mask."""
        require_folder(root, "ACDC's training/patient001/...")
        parts = self._parts(root)
        paths = [(path, part) for part, folder in parts.items() for path in matching(folder, "patient*/*")]
        frames = ((stem(path) or "", (path, part)) for path, part in paths if _is_frame(path))
        images = unique(((name, frame) for name, frame in frames if not is_left_out(name)), "scan")
        refuse_unknown()
        labels = {(path.parent, stem(path)): path for path, _ in paths}  # in capitals, perhaps, where the image is not
        groups: dict[str, str] = {}
        notes: list[str] = []
        rule = ""
        for part, folder in parts.items():
            named = {
                name: Named(name, path, name.partition("_")[0]) for name, (path, of) in images.items() if of == part
            }
            who = patients(named, self.patient, folder, "by the first word of their files' names")
            groups, rule = groups | dict(who.groups), who.rule
            notes += who.warnings
        masks = {name: labels.get((path.parent, f"{name}_gt")) for name, (path, _) in images.items()}
        pairs = {name: ((path,), mask) for name, (path, _) in images.items() if (mask := masks[name])}
        if not pairs:
            raise InputError(
                f"expected patient001/patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz and so on "
                f"in {root}, got none; give the folder that holds training/ or the patients"
            )
        alone = [name for name in images if name not in pairs]
        notes += [
            left_out(name, images[name][0], f"expected its mask {name}_gt.nii.gz beside it, got none") for name in alone
        ]
        volumes = survey(pairs, self.plane)
        read = functools.partial(read_pair, values=LabelValues.single(0, 1, 2, 3), plane=volumes.scan_plane)
        parts_of_scans = {name: part for name, (_, part) in images.items()}
        scans = tuple(
            replace(scan, phase=_phase(scan.id, scan.path.parent / "Info.cfg"))
            for scan in scan_files(pairs, groups, parts_of_scans, read)
        )
        all_notes = (*notes, *volumes.notes, *self._unused(root))
        return Source(root, spec(self), TASK, scans, all_notes, plane=volumes.plane, patient_rule=rule)

    def _parts(self, root: Path) -> dict[str, Path]:
        """Folders of patients by their part of the split; "" if it is not the data set's own."""
        if not self.split_by:
            return {"": root / "training" if (root / "training").is_dir() else root}
        for name in ("training", "testing"):
            require_folder(root / name, f"the {name} patients of ACDC")
        return {"train": root / "training", "test": root / "testing"}

    def _unused(self, root: Path) -> tuple[str, ...]:
        if self.split_by or not (root / "testing").is_dir():
            return ()
        return ("testing/ is left out: --split-by folder takes it as the test split",)


def _phase(name: str, file: Path) -> Phase:
    """The phase of a frame, as its patient's Info.cfg says; "" where it does not."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
    except OSError:
        return ""
    frames: dict[str, Phase] = {
        number: phase for phase in PHASES for number in re.findall(rf"^{phase}: *(\d+)\s*$", text, re.M)
    }
    return frames.get(str(int(name.rpartition("frame")[2])), "")


def _is_frame(path: Path) -> bool:
    return bool(_SCAN.fullmatch(stem(path) or ""))
