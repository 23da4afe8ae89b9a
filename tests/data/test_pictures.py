"""Pictures and what becomes of them: every format read as it is stored, and written back to the last bit."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.scans import palette_png
from PIL import Image

from medseg_attack.data.formats.pictures import (
    header,
    lossless,
    read_marks,
    read_mask,
    read_picture,
    reduced,
    write_picture,
)
from medseg_attack.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
RGB = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)


def png(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """A PNG of 16 bits, written by hand: Pillow writes none in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    size = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def written(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".tif" and (pixels.ndim == 3 or pixels.dtype.kind != "u") and pixels.dtype != np.uint8:
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    else:
        Image.fromarray(pixels).save(path)
    return path


def kind_of(path: Path) -> tuple[str | None, str]:
    with Image.open(path) as image:
        return image.format, image.mode


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


STORED = [
    ("a.png", GREY),
    ("a.png", GREY16),
    ("a.png", RGB),
    ("a.tif", GREY),
    ("a.tif", GREY16),
    ("a.tif", RGB),
    ("a.tif", RGB16),
    ("a.tif", GREY16.astype(np.int16)),
    ("a.tif", GREY.astype(np.float32) / 3),
    ("a.gif", GREY),
    ("a.bmp", GREY),
    ("a.bmp", RGB),
]


@pytest.mark.parametrize(("name", "pixels"), STORED, ids=[f"{name} {p.dtype} {p.ndim}" for name, p in STORED])
def test_pixels_are_those_of_the_file_and_come_back(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    source = written(tmp_path / name, pixels)
    channels = len(planes(pixels))  # a GIF's grey levels are colours of its palette
    picture = reduced(read_picture(source), channels, source)
    assert picture.dtype == pixels.dtype
    assert np.array_equal(picture, planes(pixels))
    changed = picture.copy()
    changed[:, 1:3] = changed[:, 2:4]
    copy = tmp_path / f"copy-{name}"
    write_picture(copy, changed, source, name)
    assert np.array_equal(reduced(read_picture(copy), channels, copy), changed)
    assert read_picture(copy).dtype == pixels.dtype
    assert kind_of(copy)[0] == kind_of(source)[0]


@pytest.mark.parametrize("big", [True, False])
def test_a_tiff_of_either_byte_order_is_read(tmp_path: Path, big: bool) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY16, byteorder=">" if big else "<")
    assert np.array_equal(read_picture(tmp_path / "a.tif")[0], GREY16)


def test_compressed_tiffs_are_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "deflate.tif", RGB16, photometric="rgb", compression="deflate")
    assert np.array_equal(read_picture(tmp_path / "lzw.tif"), planes(RGB))
    assert np.array_equal(read_picture(tmp_path / "deflate.tif"), planes(RGB16))


@pytest.mark.parametrize(
    ("name", "pixels", "kind"),
    [
        ("a.png", GREY, (False, 8)),
        ("a.png", GREY16, (False, 16)),
        ("a.tif", RGB16, (True, 16)),
        ("a.gif", GREY, (True, 8)),
    ],
)
def test_the_header_tells_colours_and_bits(
    tmp_path: Path, name: str, pixels: np.ndarray, kind: tuple[bool, int]
) -> None:
    assert header(written(tmp_path / name, pixels)) == kind


def test_grey_in_three_channels_comes_back_in_three(tmp_path: Path) -> None:
    source = written(tmp_path / "a.png", np.repeat(GREY[..., None], 3, axis=2))
    pixels = reduced(read_picture(source), 1, source)
    assert pixels.shape == (1, 5, 7)
    write_picture(tmp_path / "copy.png", pixels // 2, source, "a.png")
    assert kind_of(tmp_path / "copy.png") == ("PNG", "RGB")
    assert np.array_equal(pixels_of(tmp_path / "copy.png"), np.repeat((GREY // 2)[..., None], 3, axis=2))


def test_an_opaque_alpha_is_dropped_and_written_again(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(np.dstack([RGB, np.full((5, 7), 255, np.uint8)])).save(source)
    write_picture(tmp_path / "copy.png", read_picture(source), source, "a.png")
    assert np.array_equal(pixels_of(tmp_path / "copy.png"), pixels_of(source))


def test_colours_of_a_palette_are_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB // 128 * 100)
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), planes(RGB // 128 * 100))


@pytest.mark.parametrize(
    ("name", "copy"),
    [("x/a.JPG", "x/a.JPG.png"), ("a.jpeg", "a.jpeg.png"), ("a.gif", "a.gif.png"), ("a.tiff", "a.tiff")],
)
def test_what_would_lose_pixels_is_written_as_png(name: str, copy: str) -> None:
    assert lossless(name, 3) == copy


def test_a_copy_of_a_jpeg_is_a_png_without_loss(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    pixels = read_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "a.jpg.png", pixels ^ 1, tmp_path / "a.jpg", "a.jpg.png")
    assert np.array_equal(read_picture(tmp_path / "a.jpg.png"), pixels ^ 1)


def test_texts_of_a_picture_are_not_copied(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Patient", "Jane Doe")
    Image.fromarray(GREY).save(tmp_path / "a.png", pnginfo=info)
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo={270: "Jane Doe"})
    for name in ("a.png", "a.tif"):
        write_picture(tmp_path / f"copy-{name}", GREY[None], tmp_path / name, name)
        assert b"Jane" in (tmp_path / name).read_bytes()
        assert b"Jane" not in (tmp_path / f"copy-{name}").read_bytes()


def test_marks_are_grey_levels_indices_or_colours(tmp_path: Path) -> None:
    marks = RNG.integers(0, 3, (5, 7)).astype(np.uint8)
    Image.fromarray(marks * 100).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(marks[..., None] * 100, 3, axis=2)).save(tmp_path / "rgb-grey.png")
    palette = Image.fromarray(marks).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "palette.png")
    grey_palette = Image.fromarray(marks).convert("P")
    grey_palette.putpalette([255] * 3 + [0] * 3 + [9] * 3)  # the first index is white: it is not the background
    grey_palette.save(tmp_path / "grey-palette.gif")
    Image.fromarray(marks > 0).save(tmp_path / "bits.png")
    palette.convert("RGB").save(tmp_path / "colours.png")
    expected = {
        "grey.png": (marks * 100, False),
        "rgb-grey.png": (marks * 100, False),
        "palette.png": (marks, False),
        "grey-palette.gif": (np.choose(marks, [255, 0, 9]), False),
        "bits.png": ((marks > 0) * 255, False),
        "colours.png": (np.choose(marks, [0, 0x800000, 0x008000]), True),
    }
    for name, (values, colours) in expected.items():
        marked, in_colour = read_marks(tmp_path / name)
        assert np.array_equal(marked, values), name
        assert in_colour == colours, name


def test_what_cannot_be_read_as_it_is_stored_is_told(tmp_path: Path) -> None:
    png(tmp_path / "deep.png", RGB16, 2)
    Image.fromarray(np.dstack([RGB, GREY])).save(tmp_path / "clear.png")
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.tif")
    frames = [Image.fromarray(GREY), Image.fromarray(GREY.T.reshape(5, 7))]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(GREY > 9).save(tmp_path / "bits.png")
    (tmp_path / "cut.png").write_bytes((written(tmp_path / "a.png", RGB)).read_bytes()[:90])
    (tmp_path / "page.png").write_text("<html>404</html>")
    for name, told in {
        "deep.png": "expected colours of 8 bits in a PNG, got 16",
        "clear.png": "transparent",
        "cmyk.tif": "got CMYK",
        "film.gif": "expected one picture",
        "turned.jpg": "EXIF orientation 6",
        "bits.png": "black and white",
        "cut.png": "expected a whole picture",
        "page.png": "a file that is none",
    }.items():
        with pytest.raises(InputError, match=told) as error:
            read_picture(tmp_path / name)
        assert name in str(error.value)
        assert ";" in str(error.value)


def test_grey_and_colour_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected 3 channels in the picture .+, got grey"):
        reduced(GREY[None], 3, tmp_path)
    with pytest.raises(InputError, match=r"expected 1 channel in the picture .+, got colours"):
        reduced(planes(RGB), 1, tmp_path)


def test_one_reader_of_masks_takes_palettes_by_their_indices(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2], [3, 0, 1]])
    assert kind_of(palette_png(tmp_path / "a.png", numbers)) == ("PNG", "P")
    assert np.array_equal(read_mask(tmp_path / "a.png"), numbers)
    np.save(tmp_path / "a.npy", np.stack([numbers, numbers]))
    assert np.array_equal(read_mask(tmp_path / "a.npy"), np.stack([numbers, numbers]))


@pytest.mark.parametrize(
    "array",
    [np.array(True), np.zeros((0, 4)), np.zeros(4), np.zeros((2, 2), [("a", "u1")]), np.array([["a", "b"]])],
    ids=["a number", "nothing", "a row", "fields", "texts"],
)
def test_an_npy_that_is_no_mask_is_named(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=r"a mask of numbers in .*a\.npy, got .* of shape"):
        read_mask(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(InputError, match="got several arrays"):
        read_mask(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "a.npy", "a.png", "none.png"])
def test_what_is_no_mask_is_refused(tmp_path: Path, name: str) -> None:
    for other in ("a.jpg", "a.txt", "a.npy", "a.png"):
        (tmp_path / other).write_bytes(b"no mask")
    with pytest.raises(InputError, match=rf"expected a (mask|picture) .*{name}.*; "):
        read_mask(tmp_path / name)
