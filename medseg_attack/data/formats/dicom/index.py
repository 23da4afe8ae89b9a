"""Which files of a folder make one DICOM series, and which are objects with labels: read off their headers alone."""

import filecmp
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, MRImageStorage

from medseg_attack.data.formats.dicom import fields
from medseg_attack.data.formats.dicom.decoders import decoded
from medseg_attack.data.formats.dicom.label_files import LabelFile, label_file
from medseg_attack.data.formats.dicom.reading import group, is_dicom, number, numbers, read_whole, reading
from medseg_attack.data.formats.folders import walk
from medseg_attack.data.formats.leaving_out import is_left_out, offering
from medseg_attack.errors import InputError, plural

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
    "ModalityLUTSequence",
    "PixelPresentation",
    "BurnedInAnnotation",
    "LossyImageCompression",
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
        apart: mm between slices, as the header has it; 0 if absent.
        slope, inter: from stored values to the unit.
        padding: least and largest stored value that stands for no measurement; None if there is none.
        unit: of rescaled values; "" if there is none.
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
    apart: float = 0.0


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
        return fields.limits(self.bits, self.signed)


@dataclass(frozen=True)
class UncheckedSeries:
    """A series as its headers have it: its frames in no order, nothing checked.

    Attributes:
        uid: of the series; its folder where that is empty.
        patient: what tells patients apart: the patient's id, or the study or frame of reference where that is empty.
        place: the frame of reference.
        formats: of its files, each once; more than one cannot be read as one scan.
        syntaxes: the transfer syntaxes, each with a file that has it.
        duplicates: how many files hold the image of another one once more.
        refusals: why it cannot be read, each a sentence's end.
        remarks: what a reader of results should know.
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
    refusals: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """Series of images and objects with labels of a folder; notes say what was left out."""

    images: dict[str, UncheckedSeries]
    labels: tuple[LabelFile, ...]
    notes: tuple[str, ...]


def index(root: Path) -> Index:
    """All DICOM files under `root`, by their headers; hidden files are passed over.

    Raises:
        InputError: a header is cut off.
    """
    headers: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    labels: dict[str, list[LabelFile]] = defaultdict(list)
    files, links = walk(root)
    colours, notes = (
        Counter[str](),
        [f"{path.relative_to(root)} is left out: it is a link to a folder" for path in links],
    )
    for path in files:
        name = path.relative_to(root).as_posix()
        if is_left_out(name):
            continue
        # without one of its images a series is another one: it is left out with its folder
        with offering(name if path.parent == root else f"{Path(name).parent.as_posix()}/*"), reading(path):
            if not is_dicom(path):
                if path.suffix.lower() == ".dcm":
                    notes.append(f"{path.relative_to(root)} is left out: it does not begin as a DICOM file")
                continue
            header = read_whole(path, _TAGS)
            if "Rows" not in header and str(header.file_meta.get("MediaStorageSOPClassUID", "")) in _IMAGES:
                raise EOFError("it ends before its image")
            if header.get("Modality", "") in _LABELS:
                labels[str(header.get("SOPInstanceUID") or path)].append(label_file(path, header))
                continue
        folder = path.relative_to(root).parent.as_posix()
        if "Rows" in header and header.get("SamplesPerPixel", 1) == 1:
            # where UIDs were wiped, a folder is a series
            headers[str(header.get("SeriesInstanceUID") or folder)].append((path, header))
        elif "Rows" in header:
            colours[folder] += 1
    series = dict(_series(headers))
    notes += [f"{plural(n, 'image')} in {folder} left out: in colour" for folder, n in colours.items()]
    notes += [
        f"{plural(one.duplicates, 'file')} left out beside {one.frames[0].path.relative_to(root)}: copies of its series"
        for one in series.values()
        if one.duplicates
    ]
    once = [one for alike in labels.values() for one in _each_once(alike)]
    n_copies = sum(map(len, labels.values())) - len(once)
    notes += [f"{plural(n_copies, 'file')} of labels left out: copies, byte for byte"] if n_copies else []
    return Index(series, tuple(once), tuple(notes))


def _series(headers: Mapping[str, Sequence[tuple[Path, Dataset]]]) -> Iterator[tuple[str, UncheckedSeries]]:
    """The series by UID; of those that are to be left out, such as can be read: labels may refer to them."""
    for uid, files in sorted(headers.items()):
        with suppress(*(InputError,) * is_left_out(uid)), offering(uid):
            yield uid, _images(uid, files)


def _each_once(files: Iterable[LabelFile]) -> list[LabelFile]:
    """The files without those whose bytes another one has."""
    once: list[LabelFile] = []
    for file in files:
        if not any(filecmp.cmp(file.path, other.path, shallow=False) for other in once):
            once.append(file)
    return once


def frames_and_pixels(path: Path) -> tuple[list[Frame], Pixels]:
    """The frames of one file, and how they are stored.

    Raises:
        InputError: the file is broken.
    """
    with reading(path):
        header = read_whole(path, _TAGS)
        return list(_frames(path, header)), _pixels(header)


def _images(uid: str, files: Sequence[tuple[Path, Dataset]]) -> UncheckedSeries:
    kept, shared = _without_copies(files)
    first = kept[0][1]
    frames: list[Frame] = []
    formats: dict[Pixels, None] = {}
    refusals, remarks = dict[str, None](), Counter[str]()
    for path, header in kept:
        with reading(path):
            frames += _frames(path, header)
            formats[_pixels(header)] = None
            for expected, got, todo in fields.refusals(header):
                refusals.setdefault(f"expected {expected}, got {got} in {path}; {todo}")
            remarks.update(fields.remarks(header))
    if shared:
        remarks[f"{plural(shared, 'image')} more than it has SOPInstanceUIDs: each is taken, where it lies"] += 1
    syntaxes = {str(header.file_meta.get("TransferSyntaxUID", "")): path for path, header in reversed(kept)}
    return UncheckedSeries(
        uid,
        fields.patient_of(first),
        str(first.get("StudyInstanceUID", "")),
        str(first.get("FrameOfReferenceUID", "")),
        fields.modality_of(first),
        tuple(frames),
        tuple(formats),
        tuple(syntaxes.items()),
        len(files) - len(kept),
        (*_mixed(kept), *refusals),
        tuple(remarks),
    )


def _without_copies(files: Sequence[tuple[Path, Dataset]]) -> tuple[list[tuple[Path, Dataset]], int]:
    """The files, each image once, and how many of them have an identifier that an earlier one has.

    A copy is of the same instance, at the same place, in the same scale, and has the same pixels: identifiers alone are
    not enough, since some anonymisers write one into all files.
    """
    kept: list[tuple[Path, Dataset]] = []
    alike: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    uids = set[str]()
    shared = 0
    for path, header in files:
        uid = str(header.get("SOPInstanceUID") or "")
        if uid:
            with reading(path):
                facts = tuple(replace(frame, path=Path()) for frame in _frames(path, header))
                key = (uid, facts, _pixels(header))
            if any(_same_pixels(path, other) for other in alike[key]):
                continue
            alike[key].append(path)
            shared += uid in uids
            uids.add(uid)
        kept.append((path, header))
    return kept, shared


def _same_pixels(path: Path, other: Path) -> bool:
    if filecmp.cmp(path, other, shallow=False):
        return True
    try:
        return bool((decoded(path) == decoded(other)).all())
    except InputError:  # it cannot be known, and is refused where the two are read
        return False


def _mixed(files: Sequence[tuple[Path, Dataset]]) -> Iterator[str]:
    """Refusals of files that share the series' UID and nothing else."""
    for name, noun in (
        ("PatientID", "patient"),
        ("StudyInstanceUID", "study"),
        ("FrameOfReferenceUID", "frame of reference"),
        ("Modality", "modality"),
    ):
        first = {str(header.get(name)): path for path, header in reversed(files) if header.get(name)}
        if len(first) > 1:
            one, other = sorted(first.values())[:2]
            yield (
                f"expected one {noun} in a series, got {len(first)}, such as those of {one} and {other}; "
                "give each series a SeriesInstanceUID of its own, or leave one out"
            )


def _pixels(header: Dataset) -> Pixels:
    bits = int(header.get("BitsStored", 0))
    return Pixels(
        int(header.Rows),
        int(header.get("Columns", 0)),
        int(header.get("BitsAllocated", 0)),
        bits,
        bool(header.get("PixelRepresentation", 0)),
        fields.photometric_of(header),
    )


def _frames(path: Path, header: Dataset) -> Iterator[Frame]:
    padding = fields.padding(header)
    for n in range(fields.frame_count(header)):
        place, turn, measures, scale = (
            group(header, n, f"{name}Sequence") or header
            for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
        )
        apart = abs(number(measures, "SpacingBetweenSlices", 0.0))
        yield Frame(
            path,
            n,
            str(header.get("SOPInstanceUID", "")),
            numbers(place, "ImagePositionPatient"),
            numbers(turn, "ImageOrientationPatient"),
            numbers(measures, "PixelSpacing"),
            apart or number(measures, "SliceThickness", 0.0),
            number(scale, "RescaleSlope", 1.0),
            number(scale, "RescaleIntercept", 0.0),
            padding,
            fields.unit_of(scale, header),
            apart,
        )
