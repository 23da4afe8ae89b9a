"""Labels of DICOM series, each with the file that it stands in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg_attack.data.formats.dicom.index import UncheckedSeries
from medseg_attack.data.formats.dicom.label_files import LabelFile


@dataclass(frozen=True)
class Label:
    """One segment, region or value, and the file that it stands in."""

    file: LabelFile
    number: int
    name: str


ClassLabels = Mapping[str, tuple[Label, ...]]  # by class


def place_of(images: UncheckedSeries, root: Path) -> str:
    """The folder of a series in that of the data set; the name of the latter for a series right in it."""
    folder = images.frames[0].path.relative_to(root).parent.as_posix()
    return root.name if folder == "." else folder
