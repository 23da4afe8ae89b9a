"""Tiny DICOM series, SEG and RTSTRUCT, written by the tests themselves with pydicom and highdicom."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from helpers.command import medattack
from medseg_attack import registry
from medseg_attack.data.formats.scan import Scan
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.models.checkpoints import save
from medseg_attack.storage.json_files import read_json

EPS = 40  # stored values that attacks here may change
ROWS, COLUMNS = 12, 10
NAME = "Doe^Jane"


def uid(*words: object) -> str:
    return str(generate_uid(entropy_srcs=["tests", *map(str, words)]))


def values(slices: int = 4, *, seed: int = 0, low: int = 0, high: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (slices, ROWS, COLUMNS))


def native(scan: Scan) -> np.ndarray:
    """The intensities of the one channel."""
    (values_of,) = scan.native()
    return values_of


def header(patient: str, series: str, sop_class: str, instance: str, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = sop_class, instance
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, instance, modality
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = (
        NAME,
        patient,
        "19700101",
        "F",
    )
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(patient, "study"), uid(patient, series)
    dataset.FrameOfReferenceUID = uid(patient, "place")
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber, dataset.StudyID = "20200101", "120000", "A77", "7"
    dataset.ReferringPhysicianName, dataset.InstitutionName, dataset.Manufacturer = "Roe^Rick", "Canary Hospital", "M"
    dataset.SeriesNumber, dataset.PositionReferenceIndicator = 1, ""
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return dataset


def describe_pixels(dataset: Dataset, *, bits: int, signed: bool, allocated: int = 16) -> None:
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (
        ROWS,
        COLUMNS,
        1,
        "MONOCHROME2",
    )
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    *,
    patient: str = "P1",
    series: str = "ct",
    modality: str = "CT",
    bits: int = 12,
    signed: bool = False,
    scale: tuple[float, float] = (1.0, -1024.0),
    apart: float = 2.5,
    tags: Mapping[int, Mapping[str, Any]] | None = None,
    syntax: str | None = None,
    **common: Any,
) -> list[Path]:
    """Axial slices upward from z = -50 mm, 0.8 mm between rows and 0.7 between columns.

    Names of files and instance numbers run against the positions, and SliceThickness lies.

    Args:
        tags: attributes of single slices; None deletes one.
        common: attributes of all.
    """
    stored = values() if stored is None else stored
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n, pixels in enumerate(stored):
        instance = uid(patient, series, n)
        dataset = header(patient, series, CTImageStorage, instance, modality)
        describe_pixels(dataset, bits=bits, signed=signed)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.ImagePositionPatient = [-20.0, -30.0, -50 + n * apart]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.7], 5.0
        dataset.RescaleSlope, dataset.RescaleIntercept = scale
        dataset.InstanceNumber = len(stored) - n
        dataset.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        for name, value in {**common, **(tags or {}).get(n, {})}.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        if syntax is not None and syntax != ExplicitVRLittleEndian:
            compress(dataset, syntax)
        paths.append(folder / f"IM{len(stored) - n:03d}")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def compress(dataset: Dataset, syntax: str) -> None:
    if pydicom.uid.UID(syntax).is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax


def write_enhanced(
    path: Path, stored: np.ndarray, scales: Sequence[tuple[float, float]], order: Sequence[int], *, patient: str = "P1"
) -> Path:
    """One enhanced MR file whose frames stand in `order`; each slice has a scale of its own."""
    dataset = header(patient, "enhanced", EnhancedMRImageStorage, uid(patient, "enhanced", 0), "MR")
    describe_pixels(dataset, bits=16, signed=False)
    dataset.NumberOfFrames, dataset.InstanceNumber = len(order), 1
    measures, turn = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 5.0
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([turn])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for n in order:
        place, scale, content, kind = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-20.0, -30.0, -50 + n * 2.5]
        scale.RescaleSlope, scale.RescaleIntercept = scales[n]
        scale.RescaleType = "US"
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", n + 1, [n + 1]
        kind.FrameType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        frame = Dataset()
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Items([place]), Items([scale])
        frame.FrameContentSequence, frame.MRImageFrameTypeSequence = Items([content]), Items([kind])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.PixelData = stored[list(order)].astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_seg(
    path: Path, images: Sequence[Path], masks: np.ndarray, names: Sequence[str], *, kind: str = "BINARY", **more: Any
) -> Path:
    """A SEG of masks (slices, rows, columns, segments) on `images`."""
    algorithm = AlgorithmIdentificationSequence(name="a", family=codes.DCM.ArtificialIntelligence, version="1")
    segments = [
        SegmentDescription(n, name, codes.SCT.Tissue, codes.SCT.Liver, "AUTOMATIC", algorithm)
        for n, name in enumerate(names, start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = Segmentation(
            [pydicom.dcmread(image) for image in images],
            masks,
            kind,
            segments,
            series_instance_uid=uid(path, "series"),
            series_number=2,
            sop_instance_uid=uid(path),
            instance_number=1,
            manufacturer="M",
            manufacturer_model_name="M",
            software_versions="1",
            device_serial_number="1",
            **more,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def square(row: float, column: float, size: float, z: float) -> list[float]:
    """Corners, in mm, of a square whose edges lie between the centres of pixels; row and column are its first."""
    corners = [(0, 0), (0, size), (size, size), (size, 0)]
    return [mm for r, c in corners for mm in (-20 + (column - 0.5 + c) * 0.7, -30 + (row - 0.5 + r) * 0.8, z)]


def write_rtstruct(
    path: Path,
    contours: Mapping[str, Sequence[Sequence[float]]],
    *,
    patient: str = "P1",
    refers_to: str | None = "ct",
    kind: str = "CLOSED_PLANAR",
) -> Path:
    """Regions of interest by name, each with its contours in mm; without `refers_to`, of a series that is nowhere."""
    dataset = header(patient, "rt", RTStructureSetStorage, uid(path), "RTSTRUCT")
    del dataset.FrameOfReferenceUID
    series = Dataset()
    series.SeriesInstanceUID = uid(patient, refers_to) if refers_to else uid("nowhere")
    study, place = Dataset(), Dataset()
    study.RTReferencedSeriesSequence = Items([series])
    place.FrameOfReferenceUID = uid(patient, "place") if refers_to else uid("no place")
    place.RTReferencedStudySequence = Items([study])
    dataset.ReferencedFrameOfReferenceSequence = Items([place])
    rois, drawn = [], []
    for number, (name, outlines) in enumerate(contours.items(), start=1):
        roi, drawing = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawing.ReferencedROINumber = number, name, number
        items = []
        for points in outlines:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points) // 3
            contour.ContourData = [f"{mm:.6g}" for mm in points]
            items.append(contour)
        drawing.ContourSequence = Items(items)
        rois.append(roi)
        drawn.append(drawing)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(rois), Items(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def box(slices: int, *bounds: int) -> np.ndarray:
    """A mask of a box in every slice, (slices, rows, columns, 1); `bounds` are its rows, then its columns."""
    mask = np.zeros((slices, ROWS, COLUMNS, 1), np.uint8)
    mask[:, bounds[0] : bounds[1], bounds[2] : bounds[3]] = 1
    return mask


def write_hospital(root: Path, *, patients: int = 4, **options: Any) -> Path:
    """Patients of 3 slices with a SEG of a liver, the last one with an RTSTRUCT of it, in folders of their own."""
    for n in range(1, patients + 1):
        folder = root / f"pat{n}"
        stored = values(3, seed=n)
        stored[:, 3:7, 2:6] += 800  # an organ that can be seen
        images = write_series(folder / "CT", stored, patient=f"P{n}", **options)
        if n < patients:
            write_seg(folder / "labels" / "seg.dcm", images, box(3, 3, 7, 2, 6), ["Liver"])
        else:
            contours = [square(3, 2, 4, -50 + z * 2.5) for z in range(3)]
            write_rtstruct(folder / "rt" / "rs.dcm", {"Liver": contours}, patient=f"P{n}")
    return root


def tiny_model(out: Path, data: Prepared) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build("unet_small(channels=(4, 8))", "model")(data.task)
    save(out, model, {"label": "tiny", "spec": "unet_small(channels=(4, 8))"})
    return out


def attacked(root: Path, source: Path, *words: object, labels: str = "", window: str = "percentile") -> Path:
    """The run of FGSM on all of a prepared source, its copies written."""
    medattack("prepare", source, "--format", "dicom", "--out", root / "data", "--labels", labels, "--window", window)
    tiny_model(root / "model", open_prepared(root / "data"))
    medattack(
        "attack",
        "--data",
        root / "data",
        "-m",
        root / "model",
        "--attack",
        "fgsm",
        "--loss",
        "bce",
        "--eps",
        f"{EPS}raw",
        "--split",
        "all",
        "--no-control",
        "--no-checks",
        "--save-adversarial",
        "all",
        "--out",
        root / "runs",
        *words,
    )
    return next(file.parent for file in root.rglob("run.json"))


def copies(run: Path, source: Path) -> list[tuple[Path, Path]]:
    """Files of the source and of the run's copies; the prepared data alone say which is a copy of which."""
    records = open_prepared(run.parents[2] / "data").records
    files = read_json(run / "adversarial" / "manifest.json")["files"]
    return [
        (source / records[file["scan"]].frames[file["slices"][0]][0], run / "adversarial" / file["path"])
        for file in files
    ]
