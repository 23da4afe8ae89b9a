"""Perturbed copies of DICOM images, and SEG of predictions on them: told apart from the source in every viewer.

What is copied from the source is what an image needs to be read and placed; nothing else, unless headers are kept.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

import medseg_attack
from medseg_attack.data.formats.dicom.index import frames_and_pixels
from medseg_attack.data.formats.dicom.reading import reading
from medseg_attack.data.formats.scan import Array

DESCRIPTION = "PERTURBED COPY - NOT FOR CLINICAL USE"

_KEPT = frozenset(
    (
        "SOPClassUID",
        "Modality",
        "FrameOfReferenceUID",
        "InstanceNumber",
        "PatientPosition",
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
        "SliceLocation",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "Units",
        "WindowCenter",
        "WindowWidth",
        "LossyImageCompression",
        "LossyImageCompressionRatio",
        "LossyImageCompressionMethod",
        "KVP",
        "ScanningSequence",
        "SequenceVariant",
        "MRAcquisitionType",
        "EchoTime",
        "RepetitionTime",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "PixelMeasuresSequence",
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelValueTransformationSequence",
        "FrameVOILUTSequence",
        "FrameContentSequence",
        "StackID",
        "InStackPositionNumber",
        "DimensionIndexValues",
        "DimensionOrganizationSequence",
        "DimensionOrganizationUID",
        "DimensionIndexSequence",
        "DimensionIndexPointer",
        "FunctionalGroupPointer",
        "VolumetricProperties",
        "VolumeBasedCalculationTechnique",
        "PixelPresentation",
    )
)

_EMPTY = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PatientBirthDate",
    "PatientSex",
    "Manufacturer",
    "SeriesNumber",
    "PositionReferenceIndicator",
)

_OF_THE_PIXELS = ("PixelData", "SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence")
_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}  # where the source does not say


def copy_bytes(source: Path, stored: Array, *, patient: str, attack: str, key: str, keep_headers: bool) -> bytes:
    """A DICOM file with the source's geometry, scale and bits, and other stored values.

    Instance and series get UIDs of their own, and so does the study unless headers are kept. FrameOfReferenceUID is
    the source's, as the copy lies in the same space. Of headers that are kept, private elements at the top level are
    left out, and those that mark the copy are replaced. The same arguments give the same bytes. Pixels are written
    uncompressed.

    Args:
        stored: (frames, rows, columns), in the order of the source's frames.
        patient: stands for name and id, unless headers are kept.
        attack: for the image comment.
        key: of the run; another one gives other UIDs.

    Raises:
        InputError: the source cannot be read.
    """
    with reading(source):
        before = pydicom.dcmread(source)
        after = _all_public(before) if keep_headers else _needed(before)
        if not keep_headers:
            _anonymous(after, before, patient, key)
        _marked(after, before, attack, key, source.name)
        after.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes() + b"\0" * (stored.nbytes % 2)
        after["PixelData"].VR = "OW" if after.BitsAllocated > 8 else "OB"
        return _file(after)


def seg_bytes(copies: Sequence[Path], masks: Array, classes: Sequence[str], key: str) -> bytes:
    """A BINARY DICOM SEG of predictions on copies, which it refers to.

    Args:
        masks: (slices, rows, columns, classes) of booleans, in the order of `copies`, or of the frames of the one.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    version = medseg_attack.__version__
    algorithm = AlgorithmIdentificationSequence(
        name="model under attack", family=codes.DCM.ArtificialIntelligence, version=version
    )
    segments = [
        SegmentDescription(n, name[:64], codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", algorithm)
        for n, name in enumerate(classes, start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an organ that was nowhere found, which is what attacks are for
        segmentation = Segmentation(
            [pydicom.dcmread(path) for path in copies],
            masks.astype(np.uint8),
            "BINARY",
            segments,
            series_instance_uid=generate_uid(entropy_srcs=[key, "SEG series"]),
            series_number=1,
            sop_instance_uid=generate_uid(entropy_srcs=[key, "SEG"]),
            instance_number=1,
            manufacturer="medattack",
            manufacturer_model_name="medattack",
            software_versions=version,
            device_serial_number="0",
            series_description=DESCRIPTION,
            content_description="Prediction on a perturbed copy",
        )
    stream = BytesIO()
    segmentation.save_as(stream)
    return stream.getvalue()


def _needed(before: Dataset) -> Dataset:
    """The elements that `_KEPT` names, in sequences too; items of which nothing is left are left out."""
    after = Dataset()
    for element in before:
        if element.keyword not in _KEPT:
            continue
        if element.VR == "SQ":
            setattr(after, element.keyword, Items(_needed(item) for item in element.value))
        else:
            after.add(copy.deepcopy(element))
    return after


def _all_public(before: Dataset) -> Dataset:
    after = Dataset()
    for element in before:
        if element.keyword not in _OF_THE_PIXELS and not element.tag.is_private:
            after.add(copy.deepcopy(element))
    return after


def _anonymous(after: Dataset, before: Dataset, patient: str, key: str) -> None:
    for name in _EMPTY:
        setattr(after, name, None)
    after.PatientName = after.PatientID = patient
    after.PatientIdentityRemoved = "YES"
    after.DeidentificationMethod = "medattack: only what the image needs was copied"
    after.StudyInstanceUID = _uid(key, "study", before.get("StudyInstanceUID") or patient)


def _marked(after: Dataset, before: Dataset, attack: str, key: str, name: str) -> None:
    """Everything that says that this is no scan, and of which one it is a copy."""
    uid = before.get("SOPInstanceUID")
    kind = after.get("SOPClassUID") or _CLASSES.get(before.get("Modality", ""), CTImageStorage)
    after.SOPClassUID = kind
    after.SOPInstanceUID = _uid(key, "instance", uid or name)
    after.SeriesInstanceUID = _uid(key, "series", before.get("SeriesInstanceUID") or before.get("FrameOfReferenceUID"))
    after.ImageType = _derived(before.get("ImageType"))
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        _derive_frames(before.get(groups) or [], after.get(groups) or [])
    after.SeriesDescription = DESCRIPTION
    after.ImageComments = f"perturbed by medattack, not for diagnosis: {attack}"[:10240]
    after.DerivationDescription = f"adversarial perturbation: {attack}"[:1024]
    if uid:
        source = Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = kind, uid
        after.SourceImageSequence = Items([source])


def _derive_frames(before: Iterable[Dataset], after: Iterable[Dataset]) -> None:
    for old, new in zip(before, after, strict=False):
        for name in ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence"):
            for item in old.get(name) or []:
                frame_type = _needed(item)
                frame_type.FrameType = _derived(item.get("FrameType"))
                setattr(new, name, Items([frame_type]))


def _derived(kind: Any) -> list[str]:
    """An image type whose first two values say: made from other images, by something else than the scanner."""
    rest = list(kind)[2:] if isinstance(kind, Iterable) and not isinstance(kind, str) else []
    return ["DERIVED", "SECONDARY", *(str(word) for word in rest)]


def _uid(key: str, what: str, of: object) -> str:
    return str(generate_uid(entropy_srcs=[key, what, str(of)]))


def _file(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def geometry(path: Path) -> Mapping[str, Any]:
    """The facts that a copy shares with its source: where its pixels lie and what they mean.

    Raises:
        InputError: the file is broken.
    """
    frames, pixels = frames_and_pixels(path)
    facts: dict[str, Any] = {
        "pixels": [pixels.rows, pixels.columns, pixels.allocated, pixels.bits, pixels.signed, pixels.photometric]
    }
    for name in ("position", "orientation", "spacing", "slope", "inter"):
        facts[name] = [getattr(frame, name) for frame in frames]
    return facts
