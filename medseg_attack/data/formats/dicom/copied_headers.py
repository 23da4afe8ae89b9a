"""The elements that a perturbed copy has of its source: a list of what is kept, whatever else there is.

It follows the basic profile of PS3.15 (table E.1-1) with clean descriptors: numbers of geometry and acquisition stay,
coded strings stay if the standard defines them, UIDs are replaced (in `writing`). No text, name, date or private
element is kept.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medseg_attack.data.formats.dicom.fields import PET_UNITS, RESCALE_TYPES

METHOD = "medattack: a list of what an image needs was copied"
PROFILE = (("113100", "Basic Application Confidentiality Profile"), ("113105", "Clean Descriptors Option"))

NewUid = Callable[[str, str], str]  # of a keyword and the source's UID

_NUMERIC = frozenset(("DS", "IS", "US", "SS", "UL", "SL", "FL", "FD"))
_NUMBERS = frozenset(
    (
        *("InstanceNumber", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
        *("SliceThickness", "SpacingBetweenSlices", "SliceLocation"),
        *("WindowCenter", "WindowWidth", "LossyImageCompressionRatio"),
        *("KVP", "EchoTime", "RepetitionTime", "InStackPositionNumber", "DimensionIndexValues"),
    )
)
_TERMS = {
    "PatientPosition": (
        *("HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS"),
        *("LFP", "LFS", "RFP", "RFS", "AFDR", "AFDL", "PFDR", "PFDL"),
    ),
    "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2"),
    "RescaleType": RESCALE_TYPES,
    "Units": PET_UNITS,
    "BurnedInAnnotation": ("YES", "NO"),
    "LossyImageCompression": ("00", "01"),
    "LossyImageCompressionMethod": (
        *("ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_15444_15"),
        *("ISO_13818_2", "ISO_14496_10", "ISO_23008_2", "ISO_18181_1"),
    ),
    "ScanningSequence": ("SE", "IR", "GR", "EP", "RM"),
    "SequenceVariant": ("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "TOF", "NONE"),
    "MRAcquisitionType": ("2D", "3D"),
    "VolumetricProperties": ("VOLUME", "SAMPLED", "DISTORTED", "MIXED"),
    "VolumeBasedCalculationTechnique": (
        *("MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "MPR", "CURVED_MPR", "NONE", "MIXED"),
    ),
    "PixelPresentation": ("MONOCHROME",),
}
_UIDS = frozenset(("FrameOfReferenceUID", "DimensionOrganizationUID"))
_POINTERS = frozenset(("DimensionIndexPointer", "FunctionalGroupPointer"))
_SEQUENCES = frozenset(
    (
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence"),
        *("PixelValueTransformationSequence", "FrameVOILUTSequence", "FrameContentSequence"),
        *("DimensionOrganizationSequence", "DimensionIndexSequence"),
    )
)
_IMAGE_TYPES = frozenset(
    (
        *("AXIAL", "LOCALIZER", "VOLUME", "MPR", "PROJECTION IMAGE", "OTHER", "NONE", "MIXED"),
        *("M", "P", "R", "I", "M_SE", "M_FFE", "M_IR", "PHASE MAP", "T1", "T2", "ADC", "DIFFUSION", "WATER", "FAT"),
        *("IN_PHASE", "OUT_PHASE", "ANGIO", "CARDIAC", "PERFUSION", "DYNAMIC", "REST", "STRESS", "ATTENUATION"),
        *("MONO_ENERGETIC", "MATERIAL", "STATIC", "GATED", "WHOLE BODY", "RESAMPLED", "REFORMATTED", "AVERAGE"),
    )
)


def needed(before: Dataset, new_uid: NewUid) -> Dataset:
    """The elements of a header that an image needs, in sequences too."""
    after = Dataset()
    for element in before:
        keyword = element.keyword
        if keyword in _SEQUENCES and element.VR == "SQ":
            setattr(after, keyword, Items(needed(item, new_uid) for item in element.value))
        elif keyword in _UIDS and element.value:
            setattr(after, keyword, new_uid(keyword, str(element.value)))
        elif keyword == "StackID":
            after.StackID = str(element.value) if str(element.value) in map(str, range(1, 100)) else "1"
        elif _is_kept(element):
            after.add(copy.deepcopy(element))
    return after


def derived(kind: Any) -> list[str]:
    """An image type whose first two values say: made from other images, by something else than the scanner."""
    rest = list(kind)[2:] if isinstance(kind, Iterable) and not isinstance(kind, str) else []
    return ["DERIVED", "SECONDARY", *(str(word) if str(word) in _IMAGE_TYPES else "OTHER" for word in rest)]


def deidentified(after: Dataset, before: Dataset) -> None:
    """Says of a copy what was done to its header; of text in its pixels nobody knows, so then it does not say that."""
    after.PatientIdentityRemoved = "NO" if before.get("BurnedInAnnotation") == "YES" else "YES"
    after.LongitudinalTemporalInformationModified = "REMOVED"
    after.DeidentificationMethod = METHOD
    codes = []
    for value, meaning in PROFILE:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    after.DeidentificationMethodCodeSequence = Items(codes)


def _is_kept(element: DataElement) -> bool:
    """Whether an element is a number, a word that the standard defines, or names an element of the standard."""
    if element.keyword in _NUMBERS:
        return element.VR in _NUMERIC
    if element.keyword not in _TERMS.keys() | _POINTERS:
        return False
    values = [element.value] if isinstance(element.value, str | int) else list(element.value or [])
    if element.keyword in _TERMS:
        return bool(values) and all(str(value) in _TERMS[element.keyword] for value in values)
    return element.VR == "AT" and all(not (int(tag) >> 16) % 2 for tag in values)
