"""Libraries that decode files raise errors of any type on a damaged one: each is a sentence that names the file."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import tifffile
import torch
from helpers.dicoms import box, values, write_seg, write_series
from helpers.runs import dice_of, write_run
from helpers.scans import write_pair
from helpers.sources import WRITERS, opened, read_all
from PIL import Image
from pydicom.errors import BytesLengthException

from medseg_attack.data.datasets.source import open_source
from medseg_attack.data.formats.dicom.decoders import decoded
from medseg_attack.data.formats.dicom.reading import read_whole, reading
from medseg_attack.data.formats.nifti import read_nifti
from medseg_attack.data.formats.pictures import read_mask, read_picture
from medseg_attack.data.formats.png16 import read_png16
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.data.prepared.record import _mapped
from medseg_attack.data.prepared.writing import prepare
from medseg_attack.errors import InputError
from medseg_attack.models.importers.torchscript import torchscript
from medseg_attack.runs.folder import read_part

ERRORS = (IndexError, struct.error, OverflowError, ZeroDivisionError, AssertionError, TypeError, BytesLengthException)


def dicom(path: Path) -> Any:
    with reading(path):
        return read_whole(path)


READERS: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "Pillow": (Image, "open", read_picture),
    "Pillow, 16 bits": (Image, "open", read_png16),
    "tifffile": (tifffile, "imread", read_picture),
    "nibabel": (nibabel, "load", read_nifti),
    "pydicom": (pydicom, "dcmread", dicom),
    "NumPy": (np, "load", lambda path: _mapped(path, (2,), "iu")),
    "NumPy's masks": (np, "load", read_mask),
    "Arrow": (pq, "ParquetFile", read_part),
    "torch": (torch.jit, "load", torchscript),
}


def write(name: str, folder: Path) -> Path:
    """A file that the reader reaches its library with."""
    match name:
        case "tifffile":
            tifffile.imwrite(folder / "a.tif", np.arange(64, dtype=np.uint32).reshape(8, 8))
            return folder / "a.tif"
        case "nibabel":
            write_pair(folder / "a.nii", folder / "b.nii")
            return folder / "a.nii"
        case "NumPy" | "NumPy's masks":
            np.save(folder / "a.npy", np.zeros((2, 2)))
            return folder / "a.npy"
        case "Arrow":
            return next(write_run(folder, dice_of(0, 3)).rglob("*.parquet"))
        case "pydicom":
            return write_series(folder / "ct")[0]
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize("name", READERS)
def test_any_error_of_a_decoder_is_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, call, read = READERS[name]
    path = write(name, tmp_path)
    for kind in ERRORS:

        def fails(*_: Any, kind: type[Exception] = kind, **__: Any) -> Any:
            raise kind("no such thing")

        monkeypatch.setattr(library, call, fails)
        with pytest.raises(InputError, match=f"expected .*{path.name}, got .*no such thing.*; "):
            read(path)


def test_a_tiff_whose_second_page_has_no_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (start,) = struct.unpack("<I", content[4:8])
    (tags,) = struct.unpack("<H", content[start : start + 2])
    link = start + 2 + 12 * tags
    content[link : link + 4] = struct.pack("<I", len(content))
    (tmp_path / "a.tif").write_bytes(content + bytes(6))
    with pytest.raises(InputError, match=r"expected a .*picture in .*a\.tif"):
        read_picture(tmp_path / "a.tif")


def test_a_dicom_number_of_six_bytes_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path / "ct")[0]
    content = bytearray(path.read_bytes())
    content[138:140] = struct.pack("<H", 6)  # the length of FileMetaInformationGroupLength, 4 bytes
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"expected a whole DICOM file in .*{path.name}"):
        dicom(path)


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("type", ["U3", "complex64", "bool", ">f4", "longdouble", "datetime64[s]", "S2"])
def test_arrays_of_anything_but_numbers_are_refused(kind: str, type: str, tmp_path: Path) -> None:
    source = WRITERS["folder"](tmp_path / "source")
    list(prepare(opened("folder", source), tmp_path / "data"))
    data = open_prepared(tmp_path / "data")
    file = tmp_path / "data" / kind / f"{data.scans[0]}.npy"
    np.save(file, np.zeros(np.load(file).shape, type))
    ref = next(ref for ref in data.refs("all") if ref.volume == data.scans[0])
    with pytest.raises(InputError, match=f"expected .* in .*{file.name}, got .*; prepare the data again"):
        data.read(ref)
    assert file.name in data.damages(data.scans)[0]


@pytest.mark.parametrize(
    "keyword", ["PatientID", "Rows", "SeriesInstanceUID", "BitsStored", "RescaleSlope", "Modality"]
)
def test_an_element_of_no_known_type_is_refused_with_its_file(keyword: str, tmp_path: Path) -> None:
    root = WRITERS["dicom"](tmp_path / "scans")
    path = root / "pat1" / "CT" / "IM001"
    content = bytearray(path.read_bytes())
    tag = pydicom.datadict.tag_for_keyword(keyword) or 0
    place = content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132) + 4
    content[place : place + 2] = b"LK"
    path.write_bytes(content)
    with pytest.raises(InputError, match="IM001"):
        opened("dicom", root)


@pytest.mark.parametrize("text", [b"0*0", b"\\", b"1e999"])
def test_a_frame_of_a_seg_at_no_number_is_refused_with_its_file(text: bytes, tmp_path: Path) -> None:
    root = WRITERS["dicom"](tmp_path / "scans")
    path = root / "pat1" / "labels" / "seg.dcm"
    content = bytearray(path.read_bytes())
    places = [place for place in range(len(content)) if content[place : place + 6] == b"\x20\x00\x32\x00DS"]
    content[places[-1] + 8 : places[-1] + 8 + len(text)] = text
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"seg\.dcm"):
        read_all("dicom", root)


SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}
FEWER: dict[str, dict[str, int]] = {
    "rows": {"Rows": 6},
    "columns": {"Columns": 5},
    "more rows": {"Rows": 64},
    "bits": {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
}


@pytest.mark.parametrize("change", FEWER)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_pixels_of_another_number_than_the_header_has_are_refused(tmp_path: Path, syntax: str, change: str) -> None:
    """Decoders take the first of them as rows of another length, or end the process (GDCM with JPEG-LS)."""
    path = write_series(tmp_path, np.random.default_rng(0).integers(0, 900, (1, 32, 40)))[0]
    dataset = pydicom.dcmread(path)
    if SYNTAXES[syntax] != dataset.file_meta.TransferSyntaxUID:
        dataset.compress(SYNTAXES[syntax], generate_instance_uid=False)
    dataset.save_as(path)
    assert decoded(path).shape == (1, 32, 40)
    for field, value in FEWER[change].items():
        setattr(dataset, field, value)
    dataset.save_as(path)
    with pytest.raises(InputError, match="expected "):
        decoded(path)


def compressed(folder: Path, syntax: str, pixels: Any, **fields: int) -> Path:
    """A CT slice in 12 bits, compressed, of which header fields say something else than its stream."""
    path = write_series(folder, pixels)[0]
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(pixels.dtype.kind == "i")
    dataset.compress(syntax, pixels[0], generate_instance_uid=False)
    for field, value in fields.items():
        setattr(dataset, field, value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000"])
def test_bits_below_the_stored_ones_are_dropped_only_if_the_stream_has_them(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (1, 32, 40)).astype(np.uint16)
    path = compressed(tmp_path / "a", SYNTAXES[syntax], pixels, HighBit=15)
    assert (decoded(path) == pixels).all()
    dataset = pydicom.dcmread(path)
    dataset.BitsStored = 16
    dataset.compress(SYNTAXES[syntax], pixels[0] << 4, generate_instance_uid=False)
    dataset.BitsStored = 12
    dataset.save_as(path)
    assert (decoded(path) == pixels).all()


@pytest.mark.parametrize(
    ("sign", "fields", "message"),
    [
        ("u", {"BitsStored": 8, "HighBit": 7}, "values from 0 to 255 by BitsStored"),
        ("i", {"PixelRepresentation": 0}, "values without sign by PixelRepresentation"),
    ],
)
def test_values_that_the_header_denies_are_refused(
    tmp_path: Path, sign: str, fields: dict[str, int], message: str
) -> None:
    pixels = np.arange(1280).reshape(1, 32, 40).astype(f"{sign}2")
    path = compressed(tmp_path, SYNTAXES["JPEG 2000"], pixels, **fields)
    with pytest.raises(InputError, match=f"expected {message}.* in .*{path.name}; export it again"):
        decoded(path)


def test_a_stream_of_another_compression_than_the_header_says_is_refused(tmp_path: Path) -> None:
    """Pillow opens JPEG 2000 where JPEG was asked for, and gives other values."""
    path = compressed(tmp_path, SYNTAXES["JPEG 2000"], np.full((1, 32, 40), 700, np.uint16))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.save_as(path)
    with pytest.raises(
        InputError, match=f"expected JPEG baseline in PixelData, got another compression in .*{path.name}"
    ):
        decoded(path)


@pytest.mark.parametrize("change", [{"Rows": 6}, {"Columns": 5}])
def test_a_segmentation_of_more_pixels_than_its_header_has_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    images = write_series(tmp_path / "ct", values(4))
    write_seg(tmp_path / "seg.dcm", images, box(4, 3, 7, 2, 6), ["Liver"])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    for field, value in change.items():
        setattr(dataset, field, value)
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match=r"expected pixels of .* bytes by Rows, Columns, NumberOfFrames"):
        open_source("dicom", tmp_path).scans[0].read()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_of_more_voxels_than_its_header_has_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    write_pair(path, tmp_path / "mask.nii", image=np.arange(400, dtype=np.int16).reshape(8, 10, 5))
    content = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
    for more, dim in ((b"", 5), (bytes(15), 5), (b"", 4), (bytes(200), 5)):
        header = nibabel.Nifti1Header(bytes(content[:348]))
        header["dim"][3] = dim
        changed = header.binaryblock + bytes(content[348:]) + more
        path.write_bytes(gzip.compress(changed) if ending == ".nii.gz" else changed)
        if dim == 5 and len(more) < 16:  # padding of less than a row
            assert read_nifti(path).stored.shape == (8, 10, 5)
        else:
            with pytest.raises(InputError, match=r"dim: expected lengths of all voxels in .*; repair the header"):
                read_nifti(path)


CHANGES: dict[str, tuple[str, int]] = {
    "fewer columns": ("ImageWidth", 8),
    "one column less": ("ImageWidth", 15),
    "more columns": ("ImageWidth", 17),
    "fewer rows": ("ImageLength", 6),
    "one row less": ("ImageLength", 11),
    "one row more": ("ImageLength", 13),
    "many rows": ("ImageLength", 60_000),
    "fewer bits": ("BitsPerSample", 8),
    "more bits": ("BitsPerSample", 32),
    "strips of one row": ("RowsPerStrip", 1),
    "bytes": ("StripByteCounts", 10),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tiff_of_another_number_of_pixels_than_its_tags_say_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.arange(192, dtype=np.uint16).reshape(12, 16), metadata=None)
    assert read_picture(path).shape == (1, 12, 16)
    tag, value = CHANGES[change]
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)
    with pytest.raises(InputError, match=r"a\.tif"):
        read_picture(path)


@pytest.mark.parametrize("shape", [(12, 16, 2), (12, 16, 4)])
def test_channels_that_mean_nothing_are_not_passed_over(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path, colour = tmp_path / "a.tif", "rgb" if shape[2] == 4 else "minisblack"
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    tifffile.imwrite(path, pixels, photometric=colour, planarconfig="contig", extrasamples=["unspecified"])
    with pytest.raises(InputError, match=r"expected grey levels or colours in .*, got . channels of which"):
        read_picture(path)
