"""SEG and RTSTRUCT files by their headers: what their labels are called, and what they belong to."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from medseg_attack.data.formats.dicom.fields import patient_of
from medseg_attack.data.formats.dicom.reading import group, number, read_whole

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True)
class LabelFile:
    """A DICOM SEG or RTSTRUCT.

    Attributes:
        series, instances: UIDs of the images that it says it belongs to.
        names: number and name of its segments or regions of interest, without the background and without points.
        places: number and frame of reference of those regions that have one of their own.
        empty: numbers of those without a frame or a contour.
        apart: mm between the slices of a SEG, as its header has it; 0 if absent.
        refusal: why it cannot be read; "" if it can.
        remarks: what a reader of results should know.
    """

    path: Path
    kind: str
    patient: str
    place: str
    series: frozenset[str]
    instances: frozenset[str]
    names: tuple[tuple[int, str], ...]
    places: tuple[tuple[int, str], ...] = ()
    empty: frozenset[int] = frozenset()
    apart: float = 0.0
    refusal: str = ""
    remarks: tuple[str, ...] = ()

    def names_in(self, place: str) -> tuple[tuple[int, str], ...]:
        """The labels in a frame of reference: all, unless some say that they lie in it and others that they do not."""
        places = dict(self.places)
        if place not in places.values():
            return self.names
        return tuple((number, name) for number, name in self.names if places.get(number, place) == place)


@dataclass(frozen=True)
class Region:
    """A region of interest of an RTSTRUCT, as its header has it.

    Attributes:
        place: its frame of reference; "" if it does not say.
        contours: how many it has of each ContourGeometricType.
    """

    number: int
    name: str
    place: str
    contours: tuple[tuple[str, int], ...]

    @property
    def is_points(self) -> bool:
        """Whether it is drawn, but with nothing that encloses an area: an isocentre, or a line."""
        return bool(self.contours) and not any(kind in CLOSED for kind, _ in self.contours)


def regions(dataset: Dataset) -> tuple[Region, ...]:
    """The regions of interest of an RTSTRUCT, whether drawn or not."""
    drawn: dict[int, Counter[str]] = {}
    for roi in dataset.get("ROIContourSequence") or []:
        kinds = drawn.setdefault(int(roi.ReferencedROINumber), Counter())
        kinds.update(contour_kind(contour) for contour in roi.get("ContourSequence") or [])
    return tuple(
        Region(
            int(roi.ROINumber),
            str(roi.get("ROIName", "")),
            str(roi.get("ReferencedFrameOfReferenceUID") or ""),
            tuple(sorted(drawn.get(int(roi.ROINumber), Counter()).items())),
        )
        for roi in dataset.get("StructureSetROISequence") or []
    )


def contour_kind(contour: Dataset) -> str:
    """The ContourGeometricType, "POINT" also for a closed contour of fewer than three points.

    A closed contour whose numbers are no points, or not as many as it says, stays one: its reader refuses it.
    """
    kind, n = str(contour.get("ContourGeometricType") or ""), len(contour.get("ContourData") or [])
    n_points = contour.get("NumberOfContourPoints")
    if kind in CLOSED and n < 9 and n % 3 == 0 and (n_points is None or int(n_points) * 3 == n):
        return "POINT"
    return kind if kind in (*CLOSED, "POINT", "OPEN_PLANAR", "OPEN_NONPLANAR") else "other"


def label_file(path: Path, header: Dataset) -> LabelFile:
    """The labels of a SEG or RTSTRUCT, of whose header the tags of references and segments are enough."""
    referenced = list(_referenced(header))
    series = frozenset(str(one.get("SeriesInstanceUID")) for one in referenced if one.get("SeriesInstanceUID"))
    instances = frozenset(
        str(item.ReferencedSOPInstanceUID)
        for one in referenced
        for item in one.get("ReferencedInstanceSequence") or one.get("ContourImageSequence") or []
    )
    file = LabelFile(path, str(header.Modality), patient_of(header), _place(header), series, instances, ())
    return _with_segments(file, header) if header.Modality == "SEG" else _with_regions(file, read_whole(path))


def _with_segments(file: LabelFile, header: Dataset) -> LabelFile:
    segments = [(int(one.SegmentNumber), str(one.get("SegmentLabel", ""))) for one in header.SegmentSequence]
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    numbers_of_frames = {
        int(item.ReferencedSegmentNumber)
        for frame in groups
        for item in frame.get("SegmentIdentificationSequence") or []
    }
    named = tuple((number, name) for number, name in segments if number)
    # a label map does not say of its frames what is in them
    empty = {number for number, _ in named} - numbers_of_frames if numbers_of_frames else set()
    measures = group(header, 0, "PixelMeasuresSequence")
    apart = abs(number(measures, "SpacingBetweenSlices", 0.0))
    return replace(
        file, names=named, empty=frozenset(empty), apart=apart, refusal=_twice([n for n, _ in segments], "segment")
    )


def _with_regions(file: LabelFile, dataset: Dataset) -> LabelFile:
    all_regions = regions(dataset)
    drawings = [region for region in all_regions if region.number and not region.is_points]
    points = [region.name for region in all_regions if region.is_points]
    lines = {
        region.name: sum(n for kind, n in region.contours if kind not in CLOSED)
        for region in drawings
        if {kind for kind, _ in region.contours} - set(CLOSED)
    }
    remarks = [f"{name} is left out: points or lines enclose nothing" for name in points]
    remarks += [
        f"{n} of the contours of {name} are points or lines, which enclose nothing" for name, n in lines.items()
    ]
    return replace(
        file,
        names=tuple((region.number, region.name) for region in drawings),
        places=tuple((region.number, region.place) for region in drawings if region.place),
        empty=frozenset(region.number for region in drawings if not region.contours),
        refusal=_twice([region.number for region in all_regions], "region") or _without_region(dataset),
        remarks=tuple(remarks),
    )


def _twice(all_numbers: Sequence[int], noun: str) -> str:
    doubles = [number for number, n in Counter(all_numbers).items() if n > 1]
    return f"expected one {noun} of each number, got several of number {doubles[0]}" if doubles else ""


def _without_region(dataset: Dataset) -> str:
    """A sentence on contours of a number that no region has; "" if there are none."""
    known = {int(roi.ROINumber) for roi in dataset.get("StructureSetROISequence") or []}
    for roi in dataset.get("ROIContourSequence") or []:
        if int(roi.ReferencedROINumber) not in known and roi.get("ContourSequence"):
            return (
                f"expected contours of regions, got some of number {int(roi.ReferencedROINumber)}, which no region has"
            )
    return ""


def _referenced(header: Dataset) -> Iterator[Dataset]:
    """The items that name a series, of SEG and of RTSTRUCT."""
    yield from header.get("ReferencedSeriesSequence") or []
    for place in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in place.get("RTReferencedStudySequence") or []:
            yield from study.get("RTReferencedSeriesSequence") or []


def _place(header: Dataset) -> str:
    own: Any = header.get("FrameOfReferenceUID")
    if own:
        return str(UID(own))
    places = [str(one.get("FrameOfReferenceUID", "")) for one in header.get("ReferencedFrameOfReferenceSequence") or []]
    return places[0] if len(set(places)) == 1 else ""
