"""The contents of a folder of DICOM files, by their headers alone: series of images, and objects with labels."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MRImageStorage

from medseg_attack.data.formats.dicom.reading import group, is_dicom, numbers, read_whole, reading
from medseg_attack.errors import plural
from medseg_attack.files import walk

_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "Units",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "SegmentSequence",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
)

_LABELS = ("SEG", "RTSTRUCT")
_IMAGES = (CTImageStorage, MRImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage)


@dataclass(frozen=True)
class Frame:
    """One slice in a file.

    Attributes:
        number: of the frame in its file, from 0.
        uid: of the file's SOP instance.
        position: of the centre of the first pixel, in mm of the patient (left, posterior, head); None if absent.
        orientation: direction of a row's pixels, then of a column's; None if absent.
        spacing: mm between rows and between columns; None if absent.
        thickness: mm, for a series of one slice; 0 if absent.
        slope, inter: from stored values to the unit.
        padding: least and largest stored value that stands for no measurement; None if there is none.
        unit: that the file itself gives to rescaled values; "" if none.
    """

    path: Path
    number: int
    uid: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float
    slope: float
    inter: float
    padding: tuple[int, int] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Pixels:
    """How pixels are stored; one for all files of a series."""

    rows: int
    columns: int
    allocated: int
    bits: int
    signed: bool
    photometric: str

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest value that the stored bits hold."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)


@dataclass(frozen=True)
class FoundSeries:
    """A series as its headers have it: its frames in no order, nothing checked.

    Attributes:
        uid: of the series; its folder where that is empty.
        patient: what tells patients apart: the patient's id, or the study or frame of reference where that is empty.
        place: the frame of reference.
        formats: of its files, each once; more than one cannot be read as one scan.
        syntaxes: the transfer syntaxes, each with a file that has it.
        duplicates: how many files hold an instance that another one holds, too.
    """

    uid: str
    patient: str
    study: str
    place: str
    modality: str
    frames: tuple[Frame, ...]
    formats: tuple[Pixels, ...]
    syntaxes: tuple[tuple[str, Path], ...]
    duplicates: int = 0


@dataclass(frozen=True)
class LabelFile:
    """A DICOM SEG or RTSTRUCT.

    Attributes:
        series, instances: UIDs of the images that it says it belongs to.
        names: number and name of its segments or regions of interest, without the background.
    """

    path: Path
    kind: str
    patient: str
    place: str
    series: frozenset[str]
    instances: frozenset[str]
    names: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Index:
    """Series of images and objects with labels of a folder; notes say what was left out."""

    images: dict[str, FoundSeries]
    labels: tuple[LabelFile, ...]
    notes: tuple[str, ...]


def index(root: Path) -> Index:
    """All DICOM files under `root`, by their headers; hidden files are passed over.

    Raises:
        InputError: a header is cut off.
    """
    headers: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    files, links = walk(root)
    labels, notes = [], [f"{path.relative_to(root)} is left out: it is a link to a folder" for path in links]
    for path in files:
        if not is_dicom(path):
            if path.suffix.lower() == ".dcm":
                notes.append(f"{path.relative_to(root)} is left out: it does not begin as a DICOM file")
            continue
        with reading(path):
            header = read_whole(path, _TAGS)
            if "Rows" not in header and str(header.file_meta.get("MediaStorageSOPClassUID", "")) in _IMAGES:
                raise EOFError("it ends before its image")
            if header.get("Modality", "") in _LABELS:
                labels.append(_label_file(path, header))
                continue
        if "Rows" in header and header.get("SamplesPerPixel", 1) == 1:
            # where UIDs were wiped, a folder is a series
            headers[str(header.get("SeriesInstanceUID") or path.relative_to(root).parent)].append((path, header))
    series = {uid: _images(uid, files) for uid, files in sorted(headers.items())}
    notes += [
        f"{plural(one.duplicates, 'file')} left out beside {one.frames[0].path.relative_to(root)}: copies of its series"
        for one in series.values()
        if one.duplicates
    ]
    return Index(series, tuple(labels), tuple(notes))


def frames_and_pixels(path: Path) -> tuple[list[Frame], Pixels]:
    """The frames of one file, and how they are stored.

    Raises:
        InputError: the file is broken.
    """
    with reading(path):
        header = read_whole(path, _TAGS)
        return list(_frames(path, header)), _pixels(header)


def _images(uid: str, files: Sequence[tuple[Path, Dataset]]) -> FoundSeries:
    once = {str(header.get("SOPInstanceUID") or path): (path, header) for path, header in reversed(files)}
    kept = [once[name] for name in reversed(once)]
    first = kept[0][1]
    frames: list[Frame] = []
    formats: dict[Pixels, None] = {}
    for path, header in kept:
        with reading(path):
            frames += _frames(path, header)
            formats[_pixels(header)] = None
    syntaxes = {str(header.file_meta.get("TransferSyntaxUID", "")): path for path, header in reversed(kept)}
    return FoundSeries(
        uid,
        _patient(first),
        str(first.get("StudyInstanceUID", "")),
        str(first.get("FrameOfReferenceUID", "")),
        str(first.get("Modality", "")),
        tuple(frames),
        tuple(formats),
        tuple(syntaxes.items()),
        len(files) - len(kept),
    )


def _patient(header: Dataset) -> str:
    values = (
        header.get(name) for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")
    )
    return next((str(value) for value in values if value), "")


def _pixels(header: Dataset) -> Pixels:
    bits = int(header.get("BitsStored", 0))
    return Pixels(
        int(header.Rows),
        int(header.get("Columns", 0)),
        int(header.get("BitsAllocated", 0)),
        bits,
        bool(header.get("PixelRepresentation", 0)),
        str(header.get("PhotometricInterpretation", "")),
    )


def _frames(path: Path, header: Dataset) -> Iterator[Frame]:
    padding = _padding(header)
    for n in range(int(header.get("NumberOfFrames") or 1)):
        many = "PerFrameFunctionalGroupsSequence" in header
        place = group(header, n, "PlanePositionSequence") if many else header
        turn = group(header, n, "PlaneOrientationSequence") if many else header
        measures = group(header, n, "PixelMeasuresSequence") if many else header
        scale = group(header, n, "PixelValueTransformationSequence") if many else header
        yield Frame(
            path,
            n,
            str(header.get("SOPInstanceUID", "")),
            numbers(place, "ImagePositionPatient"),
            numbers(turn, "ImageOrientationPatient"),
            numbers(measures, "PixelSpacing"),
            _float(measures, "SpacingBetweenSlices", 0.0) or _float(measures, "SliceThickness", 0.0),
            _float(scale, "RescaleSlope", 1.0),
            _float(scale, "RescaleIntercept", 0.0),
            padding,
            _unit(scale, header),
        )


def _padding(header: Dataset) -> tuple[int, int] | None:
    """The values used for padding, as they are stored: neither slope nor intercept applies to them (PS3.3 C.7.5.1)."""
    range_ends = (header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit"))
    values = [int(value) for value in range_ends if value is not None]
    if range_ends[0] is None:
        return None
    bits = int(header.get("BitsAllocated", 16))
    half = 2 ** (bits - 1) if header.get("PixelRepresentation", 0) else 0
    values = [(value + half) % 2**bits - half for value in values]  # some scanners write -2000 as 63536
    return min(values), max(values)


def _unit(scale: Dataset, header: Dataset) -> str:
    """RescaleType, of which US says that there is none, or what PET calls Units."""
    unit = str(scale.get("RescaleType") or header.get("Units") or "")
    return "" if unit == "US" else unit


def _float(dataset: Dataset, name: str, default: float) -> float:
    value = dataset.get(name)
    return default if value is None or value == "" else float(value)


def _label_file(path: Path, header: Dataset) -> LabelFile:
    referenced = list(_referenced(header))
    if header.Modality == "SEG":
        names = [(int(one.SegmentNumber), str(one.get("SegmentLabel", ""))) for one in header.SegmentSequence]
    else:
        rois = header.get("StructureSetROISequence") or []
        names = [(int(one.ROINumber), str(one.get("ROIName", ""))) for one in rois]
    series = frozenset(str(one.get("SeriesInstanceUID")) for one in referenced if one.get("SeriesInstanceUID"))
    instances = frozenset(
        str(item.ReferencedSOPInstanceUID)
        for one in referenced
        for item in one.get("ReferencedInstanceSequence") or one.get("ContourImageSequence") or []
    )
    return LabelFile(
        path,
        str(header.Modality),
        _patient(header),
        _place(header),
        series,
        instances,
        tuple((number, name) for number, name in names if number),
    )


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
