"""Perturbed copies of DICOM images, and SEG of predictions on them: told apart from the source in every viewer.

What is copied from the source stands in `copied_headers`; nothing else is, unless headers are kept.
"""

import copy
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import DS

import medseg_attack
from medseg_attack.data.formats.dicom.copied_headers import deidentified, derived, needed
from medseg_attack.data.formats.dicom.fields import modality_of, storage_class
from medseg_attack.data.formats.dicom.index import frames_and_pixels
from medseg_attack.data.formats.dicom.reading import reading
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError

DESCRIPTION = "PERTURBED COPY - NOT FOR CLINICAL USE"

_FORMS = {  # of what highdicom copies from the first image
    "PatientName": ".+",
    "PatientID": ".{1,64}",
    "PatientBirthDate": r"\d{8}",
    "PatientSex": "[MFO]",
    "AccessionNumber": ".{1,16}",
    "StudyID": ".{1,16}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"([01]\d|2[0-3])[0-5]\d[0-5]\d(\.\d{1,6})?",
    "ReferringPhysicianName": ".+",
}
_EMPTY = (*_FORMS, "Manufacturer", "SeriesNumber", "PositionReferenceIndicator")  # of a copy without headers
_OF_THE_PIXELS = (
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelDataProviderURL"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence"),
    *("DigitalSignaturesSequence", "MACParametersSequence"),  # of pixels that are no more
)
_CLASSES = {
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}  # where the source does not say; else CT
_FRAME_TYPES = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence")


def copy_bytes(source: Path, stored: Array, *, patient: str, attack: str, key: str, keep_headers: bool) -> bytes:
    """A DICOM file with the source's geometry, scale and bits, and other stored values.

    Instance and series get UIDs of their own. So do study and frame of reference unless headers are kept, the same for
    all files of one. Of headers that are kept, private elements at the top level are left out, and those that mark the
    copy are replaced. The same arguments give the same bytes. Pixels are written uncompressed.

    Args:
        stored: (frames, rows, columns), in the order of the source's frames.
        patient: stands for name and id, unless headers are kept.
        attack: for the image comment.
        key: of the run; another one gives other UIDs.

    Raises:
        InputError: the source cannot be read.
    """
    with reading(source):
        after = _header(pydicom.dcmread(source), source.name, patient, attack, key, keep_headers)
        after.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes() + b"\0" * (stored.nbytes % 2)
        after["PixelData"].VR = "OW" if after.BitsAllocated > 8 else "OB"
        return _file(after)


def require_copy(source: Path, thickness_mm: float, *, keep_headers: bool) -> None:
    """Passes if a copy of the file, and a SEG on it, can be written.

    Raises:
        InputError: they cannot.
    """
    with reading(source):
        before = pydicom.dcmread(source, stop_before_pixels=True)
        after = _header(before, source.name, "patient", "attack", "key", keep_headers)
        copied = pydicom.dcmread(BytesIO(_file(after)))
        shape = (int(copied.get("NumberOfFrames") or 1), copied.Rows, copied.Columns, 1)
    try:
        _segmentation([copied], np.zeros(shape, bool), ["organ"], "key", thickness_mm)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"expected a header that a SEG can refer to, got a {type(error).__name__} of highdicom for {source}; "
            "attack with --save-adversarial none, or without --keep-headers"
        ) from error


def _header(before: Dataset, name: str, patient: str, attack: str, key: str, keep_headers: bool) -> Dataset:
    """The header of a copy of the file `name`; arguments are those of `copy_bytes`."""
    uids = _NewUids(key)
    after = _all_public(before) if keep_headers else needed(before, uids.of)
    if not keep_headers:
        _anonymous(after, before, patient, uids)
    _marked(after, before, attack, uids, name)
    if not keep_headers:
        for item in after.get("SourceImageSequence") or []:
            item.ReferencedSOPInstanceUID = uids.of("source", item.ReferencedSOPInstanceUID)
    if "PixelRepresentation" in before and "BitsStored" in before:
        after.HighBit = int(before.BitsStored) - 1  # stored values are those that were read
    return after


@dataclass(frozen=True)
class _NewUids:
    """UIDs in place of others: the same for the same key, and no way back without it."""

    key: str

    def of(self, what: str, uid: object) -> str:
        return str(generate_uid(entropy_srcs=[self.key, what, str(uid)]))


def seg_bytes(
    copies: Sequence[Path],
    masks: Array,
    classes: Sequence[str],
    key: str,
    thickness_mm: float,
    *,
    frames: Sequence[int] = (),
) -> bytes:
    """A BINARY DICOM SEG of predictions on copies, which it refers to.

    Args:
        masks: (slices, rows, columns, classes) of booleans, in the order of `copies`, or of `frames`.
        thickness_mm: of slices that do not say it themselves.
        frames: of each mask its position in its file; frames of a file that are not among them were not predicted.
    """
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in copies]
    return _segmentation(headers, masks, classes, key, thickness_mm, frames)


def _segmentation(
    copies: Sequence[Dataset],
    masks: Array,
    classes: Sequence[str],
    key: str,
    thickness_mm: float,
    frames: Sequence[int] = (),
) -> bytes:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from highdicom.utils import get_plane_positions_of_image
    from pydicom.sr.codedict import codes

    version, uids = medseg_attack.__version__, _NewUids(key)
    algorithm = AlgorithmIdentificationSequence(
        name="model under attack", family=codes.DCM.ArtificialIntelligence, version=version
    )
    segments = [
        SegmentDescription(n, name[:64], codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", algorithm)
        for n, name in enumerate(classes, start=1)
    ]
    for header in copies:
        _complete(header, thickness_mm)
    several = frames and int(copies[0].get("NumberOfFrames") or 1) > 1
    positions = get_plane_positions_of_image(copies[0]) if several else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an organ that was nowhere found, which is what attacks are for
        segmentation = Segmentation(
            copies,
            masks.astype(np.uint8),
            "BINARY",
            segments,
            series_instance_uid=uids.of("series", "SEG"),
            series_number=1,
            sop_instance_uid=uids.of("instance", "SEG"),
            instance_number=1,
            manufacturer="medattack",
            manufacturer_model_name="medattack",
            software_versions=version,
            device_serial_number="0",
            series_description=DESCRIPTION,
            content_description="Prediction on a perturbed copy",
            plane_positions=[positions[n] for n in frames] if several else None,
        )
    stream = BytesIO()
    segmentation.save_as(stream)
    return stream.getvalue()


def _complete(header: Dataset, thickness_mm: float) -> None:
    """Makes of a header, perhaps a kept one, what highdicom takes: odd facts are emptied, a thickness is put in."""
    for name, form in _FORMS.items():
        if not re.fullmatch(form, str(header.get(name) or "")):
            setattr(header, name, None)
    groups = [
        *(header.get("SharedFunctionalGroupsSequence") or []),
        *(header.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    measures = [item for one in groups for item in one.get("PixelMeasuresSequence") or []]
    for item in measures or [header]:
        if not item.get("SliceThickness"):
            item.SliceThickness = DS(thickness_mm, auto_format=True)


def _all_public(before: Dataset) -> Dataset:
    after = Dataset()
    for element in before:
        group = element.tag.group
        in_pixels = group & 0xFF00 == 0x6000 and (group, 0x3000) not in before  # an overlay in their upper bits
        if element.keyword not in _OF_THE_PIXELS and not element.tag.is_private and not in_pixels:
            after.add(copy.deepcopy(element))
    return after


def _anonymous(after: Dataset, before: Dataset, patient: str, uids: _NewUids) -> None:
    for name in _EMPTY:
        setattr(after, name, None)
    after.PatientName = after.PatientID = patient
    after.StudyInstanceUID = uids.of("study", before.get("StudyInstanceUID") or patient)
    after.Modality = modality_of(before)
    deidentified(after, before)


def _marked(after: Dataset, before: Dataset, attack: str, uids: _NewUids, name: str) -> None:
    """Everything that says that this is no scan, and of which one it is a copy."""
    uid, series = before.get("SOPInstanceUID"), before.get("SeriesInstanceUID")
    kind = storage_class(before) or _CLASSES.get(modality_of(before), CTImageStorage)
    after.SOPClassUID = kind
    # anonymisers write one UID into several files, which differ in name or place
    after.SOPInstanceUID = uids.of("instance", (uid, name, before.get("ImagePositionPatient")))
    after.SeriesInstanceUID = uids.of("series", series or before.get("FrameOfReferenceUID"))
    if not after.get("FrameOfReferenceUID"):
        after.FrameOfReferenceUID = uids.of("FrameOfReferenceUID", series)
    after.ImageType = derived(before.get("ImageType"))
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
        for name in _FRAME_TYPES:
            for item in old.get(name) or []:
                frame_type = needed(item, lambda _, uid: uid)
                frame_type.FrameType = derived(item.get("FrameType"))
                setattr(new, name, Items([frame_type]))


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
