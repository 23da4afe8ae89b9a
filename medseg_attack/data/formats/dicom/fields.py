"""Header fields that change what stored values, places or identities mean: each is used, refused or noted.

docs/scans.md lists them all. Values that are text are taken from the standard's own lists, never as they stand.
"""

import math
from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.uid import UID

HU = "HU"
ASSUMED_HU = "HU (assumed)"  # a CT that says neither slope nor intercept

# RescaleType (PS3.3 C.11.1.1.2; US stands for none), and Units of PET (C.8.9.1.1.3)
RESCALE_TYPES = frozenset(("OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"))
PET_UNITS = frozenset(
    (
        *("CNTS", "NONE", "CM2", "CM2ML", "PCNT", "CPS", "BQML", "MGMINML", "UMOLMINML", "MLMING", "MLG"),
        *("1CM", "UMOLML", "PROPCNTS", "PROPCPS", "MLMINML", "MLML", "GML", "STDDEV"),
    )
)
_MODALITIES = frozenset(("CR", "CT", "DX", "MG", "MR", "NM", "OT", "PT", "RTDOSE", "US", "XA"))
_PHOTOMETRIC = frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"))
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_IMAGE_CLASSES = {
    _STORAGE + end
    for end in (
        *("2", "2.1", "2.2"),  # CT, enhanced, converted
        *("4", "4.1", "4.4"),  # MR
        *("128", "130", "128.1"),  # PET
        *("7", "7.1", "7.2", "7.3"),  # secondary capture
        *("13.1.1", "13.1.2"),  # cone beam
    )
}


def modality_of(header: Dataset) -> str:
    """The modality; "OT" for a word that is none of those of images."""
    modality = str(header.get("Modality") or "")
    return modality if modality in _MODALITIES else "OT"


def photometric_of(header: Dataset) -> str:
    """The photometric interpretation; "unknown" for a word that the standard lacks."""
    kind = str(header.get("PhotometricInterpretation") or "no")
    return kind if kind in (*_PHOTOMETRIC, "no") else "unknown"


def storage_class(header: Dataset) -> str:
    """The SOP class, from the file's own meta header where the data set lacks it; "" if neither says."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def frame_count(header: Dataset) -> int:
    """How many frames of the file can be placed: no more than its header describes."""
    n = _frames(header)
    return 1 if _unplaced(header) else n


def refusals(header: Dataset) -> Iterator[tuple[str, str, str]]:
    """Why an image cannot be read as its header wants it: what was expected, what is there, and what to do."""
    for expected, got, todo in _RULES:
        if problem := got(header):
            yield expected, problem, todo


def remarks(header: Dataset) -> Iterator[str]:
    """Doubts about an image that a reader of results should know, a sentence each."""
    if header.get("BurnedInAnnotation") == "YES":
        yield "its pixels hold text (BurnedInAnnotation)"
    if str(header.get("LossyImageCompression", "")) == "01":
        yield "its values were compressed with loss (LossyImageCompression)"
    bits = int(header.get("BitsStored") or 0)
    ends, (low, high) = padding(header), limits(bits, bool(header.get("PixelRepresentation")))
    if ends is not None and (ends[1] < low or ends[0] > high):
        yield f"PixelPaddingValue {ends[0]} is no value of {bits} bits, so no voxel counts as padding"


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the largest value that so many bits hold.

    >>> limits(12, True), limits(12, False)
    ((-2048, 2047), (0, 4095))
    """
    size = 1 << bits
    return (-size // 2, size // 2 - 1) if signed else (0, size - 1)


def padding(header: Dataset) -> tuple[int, int] | None:
    """The values used for padding, as they are stored: neither slope nor intercept applies to them (PS3.3 C.7.5.1)."""
    first = header.get("PixelPaddingValue")
    if first is None or first == "":
        return None
    last = header.get("PixelPaddingRangeLimit")
    signed = bool(header.get("PixelRepresentation"))
    allocated, stored = (int(header.get(name) or 16) for name in ("BitsAllocated", "BitsStored"))
    values = [int(value) for value in (first, last) if value is not None and value != ""]
    values = [_wrapped(value, allocated, signed) for value in values]  # some scanners write -2000 as 63536
    low, high = limits(stored, signed)
    values = [_wrapped(v, stored, signed) if high < v < 1 << stored and low < 0 else v for v in values]
    return min(values), max(values)


def unit_of(scale: Dataset, header: Dataset) -> str:
    """The unit of rescaled values, a word of the standard; "" if there is none, or one that the standard lacks."""
    kind = str(scale.get("RescaleType") or "")
    if kind:
        return kind if kind in RESCALE_TYPES - {"US"} else ""
    if header.get("Modality") == "CT":
        complete = all(scale.get(name) not in (None, "") for name in ("RescaleSlope", "RescaleIntercept"))
        return HU if complete else ASSUMED_HU
    unit = str(header.get("Units") or "")
    return unit if unit in PET_UNITS - {"NONE"} else ""


def _wrapped(value: int, bits: int, signed: bool) -> int:
    low, high = limits(bits, signed)
    return (value - low) % (high - low + 1) + low


def _frames(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _other_class(header: Dataset) -> str:
    kind = storage_class(header)
    if not kind or kind in _IMAGE_CLASSES:
        return ""
    name = UID(kind).name
    return name if name != kind else "a class of images that the standard does not have"


def _bits_beyond(header: Dataset) -> str:
    allocated, stored = (int(header.get(name) or 0) for name in ("BitsAllocated", "BitsStored"))
    high = header.get("HighBit")
    top = stored - 1 if high is None else int(high)
    if 1 <= stored <= top + 1 <= allocated:
        return ""
    return f"BitsAllocated {allocated}, BitsStored {stored} and HighBit {top}"


def _lookup(header: Dataset) -> str:
    return "a ModalityLUTSequence" if header.get("ModalityLUTSequence") else ""


def _coloured(header: Dataset) -> str:
    kind = header.get("PixelPresentation")
    return f"PixelPresentation {kind}" if kind in ("COLOR", "MIXED") else ""


def _unplaced(header: Dataset) -> str:
    n, described = _frames(header), len(header.get("PerFrameFunctionalGroupsSequence") or [])
    return "" if n == max(described, 1) else f"NumberOfFrames {n} and {described} descriptions of frames"


_Problem = Callable[[Dataset], str]
_RULES: tuple[tuple[str, _Problem, str], ...] = (
    ("CT, MR or PET images", _other_class, "leave it out"),
    ("bits that lie within one another", _bits_beyond, "export it again"),
    ("values that a slope and an intercept make of the stored ones", _lookup, "export it with RescaleSlope"),
    ("grey values alone", _coloured, "export it without colours"),
    ("one description for each frame", _unplaced, "export it again, or as single frames"),
)


def is_direction(cosines: tuple[float, ...]) -> bool:
    """Whether six direction cosines are two unit vectors at a right angle, as far as rounding lets them."""
    row, column = cosines[:3], cosines[3:]
    products = [math.fsum(a * b for a, b in zip(*pair, strict=True)) for pair in ((row, row), (column, column))]
    slant = math.fsum(a * b for a, b in zip(row, column, strict=True))
    return max(abs(products[0] - 1), abs(products[1] - 1), abs(slant)) < 5e-3


def patient_of(header: Dataset) -> str:
    """The identifier that tells patients apart: the patient's, or else that of the study, the space or the series."""
    values = (
        header.get(name) for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")
    )
    return next((str(value) for value in values if value), "")
