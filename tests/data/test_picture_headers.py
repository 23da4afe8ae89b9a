"""Header fields of pictures that change values, geometry or meaning, and palettes that are told for the data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers.scans import first_png, write_uw
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medseg_attack.data.datasets.source import Source, open_source
from medseg_attack.data.formats.pictures import read_marks, read_picture
from medseg_attack.errors import InputError

GREY = np.arange(12 * 10).reshape(12, 10).astype(np.uint8)
COLOURS = np.stack([GREY, GREY + 1, GREY + 2], axis=-1)


def png(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, format="PNG", **options)
    return path


def tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **options)
    return path


def chunk(name: bytes, content: bytes) -> PngInfo:
    info = PngInfo()
    info.add(name, content)
    return info


WITHOUT_INFLUENCE: dict[str, Callable[[Path], Path]] = {
    "PNG gAMA": lambda p: png(p, GREY, pnginfo=chunk(b"gAMA", (45455).to_bytes(4, "big"))),
    "PNG sBIT": lambda p: png(p, GREY, pnginfo=chunk(b"sBIT", b"\x08")),
    "PNG cHRM": lambda p: png(p, GREY, pnginfo=chunk(b"cHRM", b"\0\0\x7a\x26" * 8)),
    "PNG iCCP": lambda p: png(p, GREY, icc_profile=b"profile"),
    "PNG bKGD": lambda p: png(p, GREY, pnginfo=chunk(b"bKGD", b"\0\x05")),
    "PNG tEXt": lambda p: png(p, GREY, pnginfo=chunk(b"tEXt", b"Author\0SMITH")),
    "PNG transparent colour that no pixel has": lambda p: png(p, GREY, transparency=255),
    "TIFF FillOrder": lambda p: tiff(p, GREY, extratags=[(266, 3, 1, 1, True)]),
    "TIFF Compression": lambda p: tiff(p, GREY, compression="zlib", predictor=True),
    "TIFF byte order": lambda p: tiff(p, GREY, byteorder=">"),
    "TIFF RowsPerStrip": lambda p: tiff(p, GREY, rowsperstrip=5),
    "TIFF MinSampleValue": lambda p: tiff(p, GREY, extratags=[(280, 3, 1, 5, True), (281, 3, 1, 90, True)]),
    "TIFF Artist": lambda p: tiff(p, GREY, extratags=[(315, 2, 6, "SMITH", True)]),
}


@pytest.mark.parametrize("field", WITHOUT_INFLUENCE)
def test_fields_without_influence(tmp_path: Path, field: str) -> None:
    path = WITHOUT_INFLUENCE[field](tmp_path / ("a.png" if field.startswith("PNG") else "a.tif"))
    assert np.array_equal(read_picture(path)[0], GREY)
    assert np.array_equal(read_marks(path)[0], GREY)


def palette(path: Path, **options: Any) -> Path:
    image = Image.fromarray(GREY % 3, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(path, **options)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "png tRNS of a grey level": (lambda p: png(p, GREY, transparency=7), "got transparent pixels"),
    "png tRNS of a colour": (lambda p: png(p, COLOURS, transparency=(7, 8, 9)), "got transparent pixels"),
    "png tRNS of a palette": (lambda p: palette(p, transparency=1), "got transparent pixels"),
    "png tRNS of 16 bits": (lambda p: png(p, GREY.astype(np.uint16) * 300, transparency=300), "got transparent pixels"),
    "gif transparent entry": (lambda p: palette(p, transparency=1), "got transparent pixels"),
    "png eXIf orientation": (lambda p: png(p, GREY, exif=exif(6)), "got EXIF orientation 6"),
    "tif Orientation": (lambda p: tiff(p, GREY, extratags=[(274, 3, 1, 3, True)]), "got EXIF orientation 3"),
    "tif WhiteIsZero": (
        lambda p: tiff(p, GREY, photometric="miniswhite"),
        "PhotometricInterpretation: expected 0 as black",
    ),
    "tif WhiteIsZero of 16 bits": (
        lambda p: tiff(p, GREY.astype(np.uint16), photometric="miniswhite"),
        "got WhiteIsZero",
    ),
    "tif WhiteIsZero of floats": (
        lambda p: tiff(p, GREY.astype(np.float32), photometric="miniswhite"),
        "got WhiteIsZero",
    ),
    "tif pages": (lambda p: tiff(p, np.stack([GREY, GREY])), "expected one picture"),
    "tif ImageJ's stack": (
        lambda p: tiff(p, np.stack([GREY] * 5), description="ImageJ=1.53\nimages=5\nslices=5\n", contiguous=True),
        "expected one picture",
    ),
    "tif ImageJ's stack with one directory": (
        lambda p: tiff(p, GREY, description="ImageJ=1.53\nimages=5\nslices=5\n"),
        "expected one picture in .*, got 5 of ImageJ",
    ),
    "tif CMYK": (lambda p: tiff(p, np.stack([GREY] * 4, -1), photometric="separated"), "got CMYK"),
    "tif floats of 64 bits": (lambda p: tiff(p, GREY.astype(np.float64)), "such as numbers of 64 bits"),
    "tif floats of 16 bits": (lambda p: tiff(p, GREY.astype(np.float16)), "a TIFF of a kind that is not known"),
    "tif whole numbers of 64 bits": (lambda p: tiff(p, GREY.astype(np.int64)), "such as numbers of 64 bits"),
    "tif complex SampleFormat": (lambda p: tiff(p, GREY.astype(np.complex64)), "expected"),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


@pytest.mark.parametrize("field", REFUSED)
def test_fields_that_are_refused(tmp_path: Path, field: str) -> None:
    write, sentence = REFUSED[field]
    with pytest.raises(InputError, match=sentence):
        read_picture(write(tmp_path / f"a.{field.partition(' ')[0]}"))


@pytest.mark.parametrize("kind", [np.int16, np.uint32, np.float32, np.uint16, np.int8])
def test_grey_samples_of_a_tiff_are_read_in_their_format(tmp_path: Path, kind: type) -> None:
    pixels = (np.arange(15).reshape(5, 3) - (0 if kind in (np.uint32, np.uint16) else 7)).astype(kind)
    read = read_picture(tiff(tmp_path / "a.tif", pixels))[0]
    assert np.array_equal(read, pixels)
    assert read.dtype == kind


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_a_tiff_are_read_in_either_order(tmp_path: Path, kind: type, planar: str) -> None:
    """Three columns, so that a plane looks like a pixel of three channels."""
    pixels = np.arange(3 * 5 * 3).reshape(5, 3, 3).astype(kind)
    stored = np.moveaxis(pixels, 2, 0) if planar == "separate" else pixels
    path = tiff(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    assert np.array_equal(read_picture(path), np.moveaxis(pixels, 2, 0))


@pytest.mark.parametrize(("bits", "factor"), [(2, 85), (4, 17)])
def test_few_bits_of_grey_are_spread_to_8_as_png_defines_it(tmp_path: Path, bits: int, factor: int) -> None:
    import struct
    import zlib

    values = np.arange(8, dtype=np.uint8).reshape(2, 4) % 2**bits
    per_byte = 8 // bits
    rows = b"".join(
        b"\0"
        + bytes(
            sum(int(v) << (8 - bits * (i + 1)) for i, v in enumerate(row[k : k + per_byte]))
            for k in range(0, 4, per_byte)
        )
        for row in values
    )

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    content = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.array_equal(read_marks(tmp_path / "a.png")[0], values * factor)


def test_black_and_white_masks_are_turned_round_where_white_is_0(tmp_path: Path) -> None:
    bits = GREY % 2 == 0
    tiff(tmp_path / "a.tif", bits, photometric="miniswhite")
    assert np.array_equal(read_marks(tmp_path / "a.tif")[0] > 0, ~bits)


def test_masks_in_a_lossy_tiff_are_refused(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", compression="jpeg")
    read_picture(tmp_path / "a.tif")
    with pytest.raises(InputError, match="expected a mask without loss, got a TIFF with JPEG compression"):
        read_marks(tmp_path / "a.tif")


def test_the_transparent_colour_of_a_mask_is_a_class_as_well(tmp_path: Path) -> None:
    assert np.array_equal(read_marks(palette(tmp_path / "a.png", transparency=0))[0], GREY % 3)


def folder(root: Path, image: Callable[[Path], Path], suffix: str) -> Source:
    for n in range(3):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        image(root / "images" / f"p{n}{suffix}")
        png(root / "masks" / f"p{n}.png", (GREY > 50).astype(np.uint8))
    return open_source("folder", root)


@pytest.mark.parametrize(
    ("image", "suffix", "note"),
    [
        (lambda p: png(p, GREY, dpi=(254, 127)), ".png", "0.2 x 0.1 mm"),
        (lambda p: tiff(p, GREY, resolution=(50, 25), resolutionunit="CENTIMETER"), ".tif", "0.4 x 0.2 mm"),
        (lambda p: tiff(p, GREY, resolution=(2, 4), description="ImageJ=1.53\nunit=mm\n"), ".tif", "0.25 x 0.5 mm"),
        (lambda p: png(p, GREY, dpi=(96, 96)), ".png", ""),
        (lambda p: png(p, GREY), ".png", ""),
        (lambda p: tiff(p, GREY), ".tif", ""),
    ],
)
def test_a_pixel_size_in_the_header_is_noted(
    tmp_path: Path, image: Callable[[Path], Path], suffix: str, note: str
) -> None:
    source = folder(tmp_path, image, suffix)
    notes = [text for text in source.notes if "pixel size in the header" in text]
    assert bool(notes) == bool(note)
    assert all(f"3 of 3 scans have a pixel size in the header, {note}" in text for text in notes)
    assert source.scans[0].read().spacing_mm == (0, 1, 1)
    spaced = open_source("folder(spacing_mm=(0.5, 0.5))", tmp_path)
    assert not any("pixel size in the header" in text for text in spaced.notes)


def test_a_calibration_by_imagej_is_noted(tmp_path: Path) -> None:
    text = "ImageJ=1.53\ncf=0\nc0=-32768.0\nc1=1.0\nvunit=Gray Value\n"
    source = folder(tmp_path, lambda p: tiff(p, GREY.astype(np.uint16), description=text), ".tif")
    assert any("a calibration of values by ImageJ, which is not used" in note for note in source.notes)


def test_a_grey_class_of_a_coloured_palette_is_its_index_also_where_it_is_alone(tmp_path: Path) -> None:
    """Class 7 of PASCAL's palette is (128, 128, 128): a mask of it alone has no colours, one of classes 1 and 7 has."""
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 7]] = (128, 0, 0), (128, 128, 128)
    for n in range(4):
        truth = np.zeros((12, 10), np.uint8)
        truth[2:5, 2:5] = 7
        if n % 2:
            truth[7:9, 2:8] = 1
        mask = Image.fromarray(truth, "P")
        mask.putpalette(colours.tobytes())
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        png(tmp_path / "images" / f"p{n}.png", GREY + n)
        mask.save(tmp_path / "masks" / f"p{n}.png")
    source = open_source("folder", tmp_path, {"labels": "aeroplane=1,bottle=7"})
    labels = [scan.read().labels[0] for scan in source.scans]
    assert all((mask == 2).sum() == 9 for mask in labels)
    assert [(mask == 1).sum() for mask in labels] == [0, 12, 0, 12]
    with pytest.raises(InputError, match="expected one value beside 0 in the masks, got 2 from 1 to 7"):
        open_source("folder", tmp_path)


def test_slices_of_uw_madison_are_not_turned(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    path = first_png(root)
    Image.open(path).save(path, exif=exif(6))
    with pytest.raises(InputError, match="got EXIF orientation 6"):
        open_source("uw_madison", root).scans[0].read()
