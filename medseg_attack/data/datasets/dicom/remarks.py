"""Notes on series and their labels that a reader of results should know."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medseg_attack.data.datasets.dicom.labels import ClassLabels, place_of
from medseg_attack.data.formats.dicom.alignment import NIFTI, overlay_of
from medseg_attack.data.formats.dicom.ownership import is_referred_to
from medseg_attack.data.formats.dicom.rtstruct import read_drawing
from medseg_attack.data.formats.dicom.series import NEAR, Series
from medseg_attack.data.formats.nifti import read_nifti
from medseg_attack.errors import InputError, plural


def contour_remarks(by_class: ClassLabels, series: Series, tolerance_mm: float) -> Iterator[str]:
    """Notes on contours that lie beside the slices, whether within the tolerance or not, or beyond the image.

    Raises:
        InputError: all of a region lie on none.
    """
    labels = dict.fromkeys(label for labels in by_class.values() for label in labels if label.file.kind == "RTSTRUCT")
    drawings = {file: read_drawing(file.path, series.grid, tolerance_mm) for file in {label.file for label in labels}}
    for label in labels:
        drawing, place = drawings[label.file], f"{label.name} in {label.file.path.name}"
        on, off = drawing.on_slices(label.number), drawing.off_slices(label.number)
        nearest = min((contour.off_mm for contour in off if contour.slice is not None), default=np.inf)
        if off and not on:
            raise InputError(
                f"expected contours of {label.name!r} on the slices of the series {series.images.uid}, got "
                f"{plural(len(off), 'contour')} {_beside(nearest)} in {label.file.path}; {_remedy(nearest, series)}"
            )
        if off:
            yield f"{plural(len(off), 'contour')} of {place} left out: {_beside(nearest)}"
        beyond = sum(contour.is_beyond(series.grid.shape[1:]) for contour in on)
        if beyond:
            yield f"{plural(beyond, 'contour')} of {place} beyond the edge of the image: only what lies in it counts"
        moved = max((contour.off_mm for contour in on), default=0.0)
        if moved > NEAR * series.grid.spacing_mm[0]:
            yield f"contours of {place} lie up to {moved:.2g} mm beside their slices: each is taken for the nearest"


def _beside(nearest_mm: float) -> str:
    return f"{nearest_mm:.2g} mm or more beside the nearest slice" if nearest_mm < np.inf else "beyond its slices"


def _remedy(nearest_mm: float, series: Series) -> str:
    if not nearest_mm < np.inf:
        return "leave that file out by --masks"
    return f"take them for the nearest slice by dicom(off_mm={np.ceil(nearest_mm * 10) / 10:g}), or leave that file out"


def label_remarks(by_class: ClassLabels, series: Series, root: Path) -> Iterator[str]:
    """Notes on labels that are empty, share a name, or belong to the series by their place alone."""
    labels = [label for labels in by_class.values() for label in labels if label.file.kind != NIFTI]
    for file in dict.fromkeys(label.file for label in labels):
        place = file.path.relative_to(root).as_posix()
        names = [label.name for label in dict.fromkeys(labels) if label.file == file]
        yield from (f"{place}: {remark}" for remark in file.remarks)
        for name, n in Counter(names).items():
            if n > 1:
                yield f"{place}: {n} labels are called {name}: they are united"
        empty = [label.name for label in dict.fromkeys(labels) if label.file == file and label.number in file.empty]
        if empty:
            yield f"{place}: {', '.join(empty)} without a contour or frame: absent in this scan"
        left = len(file.names) - len(file.names_in(series.images.place))
        if left:
            yield f"{place}: {plural(left, 'region')} left out: in another frame of reference"
        if not is_referred_to(series.images, file):
            rule = "frame of reference" if file.place and file.place == series.images.place else "patient"
            yield f"{place} names no image of its series: it is matched by its {rule} alone"
        through = series.grid.spacing_mm[0]
        if file.apart and abs(file.apart - through) > 0.05 * through:
            yield (
                f"{place} has slices {file.apart:.3g} mm apart, its series {through:.3g} mm: "
                "slices without a frame count as background"
            )


def inversion_remark(series: Series, root: Path) -> str:
    """A note on a series whose least value is shown white."""
    done = "have no unit and are turned round" if series.inverted else "have a unit and stay as they are"
    return f"{place_of(series.images, root)} is shown inverted (MONOCHROME1): its values {done}"


def coverage_remarks(by_class: ClassLabels, series: Series) -> list[str]:
    """Notes on label maps that are a part of their series."""
    files = {label.file.path for labels in by_class.values() for label in labels if label.file.kind == NIFTI}
    overlays = {path: overlay_of(read_nifti(path), series.grid) for path in sorted(files)}
    return [
        f"{path.name} is a part of its series; the rest of that counts as background"
        for path, overlay in overlays.items()
        if overlay is not None and not overlay.covers
    ]
