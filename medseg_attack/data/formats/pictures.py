"""PNG, TIFF, GIF, BMP and JPEG pictures: pixels as they are stored, and perturbed ones written back without loss.

Pillow reads and writes them; it cuts colours of 16 bits to 8, so those are tifffile's, as are signed and float TIFFs.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from medseg_attack.data.formats.memory import require_room
from medseg_attack.data.formats.scan import Array
from medseg_attack.data.formats.tiff_size import require_all_pixels
from medseg_attack.errors import InputError, plural, reason, refusing
from medseg_attack.storage.paths import require_file

Image.MAX_IMAGE_PIXELS = None  # `require_room` refuses large pictures, with a limit that an option raises
LOSSY = (".jpg", ".jpeg")
LOSSLESS = (".png", ".tif", ".tiff", ".gif", ".bmp")
SUFFIXES = LOSSLESS + LOSSY
_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".bmp": "BMP"}
_GREY = ("L", "I;16", "I;16B", "I;16L", "I", "F", "1", "LA")
_KNOWN = (*_GREY, "RGB", "RGBA", "P")
# tags of a TIFF; of _KIND, 1 is unsigned, 2 signed and 3 float
_BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION = 258, 259, 262, 270
_X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _KIND = 282, 283, 284, 339
_LOSSY_TIFF = (6, 7, 33003, 33004, 33005, 34712, 34892, 50001, 50002)  # JPEG, JPEG 2000, WebP and JPEG XL
_SCREENS = (72, 96)  # dots per inch that programs write where nothing was measured


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def header(path: Path) -> tuple[bool, int]:
    """Whether a picture may have colours, and its bits per channel; no pixel is read.

    Raises:
        InputError: it is not a picture, or not one that can be read as it is stored.
    """
    with _opened(path) as (image, bits):
        return image.mode not in _GREY, bits


def read_picture(path: Path) -> Array:
    """The pixels, (channels, rows, columns), of 1 or 3 channels; a palette is replaced by its colours.

    Raises:
        InputError: it is cut off or no picture, is transparent, turned, animated, or of two colours.
    """
    return _read(path, opaque=True)


def _read(path: Path, *, opaque: bool) -> Array:
    """The pixels of `read_picture`; of a mask, whose colours mean classes, a transparent colour is one as well."""
    with _opened(path) as (image, bits):
        pixels = _tiff(image, path) if _of_tifffile(image, bits) else np.array(_plain(image, path, opaque=opaque))
    if pixels.dtype == bool:
        raise InputError(f"expected a picture of grey levels or colours, got black and white in {path}; export it anew")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.dtype.kind not in "iuf":
        raise InputError(
            f"expected grey levels or red, green and blue, got {pixels.dtype} of shape {pixels.shape} in {path}; "
            "convert the picture"
        )
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0).astype(pixels.dtype.newbyteorder("="), copy=False))


def read_marks(path: Path, *, by_index: bool = False) -> tuple[Array, bool]:
    """A mask's value in each pixel, (rows, columns), and whether these are colours (0xrrggbb).

    Values are grey levels; those of a coloured palette are its indices, as its class numbers are usually stored.

    Args:
        by_index: whether those of a grey palette are its indices, too, since other masks of the data set have colours.

    Raises:
        InputError: as `read_picture`, or its compression changes values.
    """
    with _opened(path) as (image, _):
        indices = np.array(image) if image.mode == "P" else None
        plain = np.array(image.convert("L")) if image.mode == "1" else None
        if image.format == "TIFF" and image.tag_v2.get(_COMPRESSION, 1) in _LOSSY_TIFF:
            raise InputError(
                f"expected a mask without loss, got a TIFF with JPEG compression in {path}, whose values are blurred; "
                "write it with deflate or LZW, or give --threshold 128 if it shows one class"
            )
    if plain is not None:
        return plain, False
    pixels = _read(path, opaque=False)
    if indices is not None and (by_index or not is_grey(pixels)):
        return indices, False
    if is_grey(pixels):
        return pixels[0], False
    if pixels.dtype != np.uint8:
        raise InputError(f"expected a mask of colours of 8 bits, got {pixels.dtype} in {path}; convert it")
    red, green, blue = pixels.astype(np.int32)
    return (red << 16) | (green << 8) | blue, True


def is_coloured_palette(path: Path) -> bool:
    """Whether a picture has a palette and shows colours of it."""
    with _opened(path) as (image, _):
        has_palette = image.mode == "P"
    return has_palette and not is_grey(_read(path, opaque=False))


def notes_of(path: Path) -> tuple[str, ...]:
    """Phrases about a picture's header fields that are not used: the size of a pixel, and a calibration of values."""
    with _opened(path) as (image, _):
        size, text = _pixel_mm(image), _description(image)
    notes = []
    if size is not None:
        notes.append(
            f"a pixel size in the header, {size[0]:.4g} x {size[1]:.4g} mm, which is not used: give it as "
            "folder(spacing_mm=(ROWS, COLUMNS)) if it is right"
        )
    if re.search(r"^c[01f]=", text, re.MULTILINE):
        notes.append("a calibration of values by ImageJ, which is not used: values are taken as they are stored")
    return tuple(notes)


def _pixel_mm(image: Any) -> tuple[float, float] | None:
    """Rows and columns of a pixel in mm, by the header; None if it has none, or that of a screen."""
    unit = re.search(r"^unit=(mm|cm|um|micron|\\u00B5m)$", _description(image), re.MULTILINE)
    if unit is not None and image.format == "TIFF":
        scale = {"mm": 1.0, "cm": 10.0}.get(unit[1], 0.001)
        across, down = (float(image.tag_v2.get(tag, 0)) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
        return (scale / down, scale / across) if across > 0 and down > 0 else None
    across, down = (float(value) for value in image.info.get("dpi", (0, 0)))
    if not (0 < across < np.inf and 0 < down < np.inf) or (round(across) == round(down) and round(across) in _SCREENS):
        return None
    return 25.4 / down, 25.4 / across


def _description(image: Any) -> str:
    return str(image.tag_v2.get(_DESCRIPTION, "")) if image.format == "TIFF" else ""


def read_mask(path: Path) -> Array:
    """The numbers of a mask in a file of its own: a picture as `read_marks` has it, or an NPY of any shape.

    Raises:
        InputError: it is not there, cannot be read, or is a JPEG, which changes values.
    """
    if not path.exists():
        raise InputError(f"expected a mask in {path}, got no file; give the path of a picture")
    require_file(path, "a mask")
    if path.suffix.lower() != ".npy":
        if not is_picture(path) or path.suffix.lower() in LOSSY:
            raise InputError(f"expected a mask as NPY or as a picture without loss, got {path}; write it as PNG")
        return read_marks(path)[0]
    with refusing(f"a mask in {path}", "write it again"):  # NumPy parses the header as Python
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim < 2 or not array.size or array.dtype.kind not in "biuf":
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise InputError(f"expected a mask of numbers in {path}, got {got}; write one number per pixel")
    require_room(path, array.shape)
    return np.array(array)


def is_grey(pixels: Array) -> bool:
    """Whether all channels are equal."""
    return bool((pixels == pixels[:1]).all())


def reduced(pixels: Array, channels: int, path: Path) -> Array:
    """The pixels in so many channels: three equal ones may be taken for one.

    Raises:
        InputError: they are not equal, or three are wanted where there is one.
    """
    if len(pixels) == channels:
        return pixels
    if channels == 1 and is_grey(pixels):
        return pixels[:1]
    got = "colours" if len(pixels) == 3 else "grey levels"
    raise InputError(
        f"expected {plural(channels, 'channel')} in the picture {path}, got {got}; convert it, or leave it out"
    )


def lossless(path: str, channels: int) -> str:
    """The name of a perturbed copy: the same, but PNG for formats that would change its pixels.

    >>> lossless("a.tif", 3), lossless("a.jpg", 3), lossless("a.gif", 3), lossless("a.gif", 1)
    ('a.tif', 'a.jpg.png', 'a.gif.png', 'a.gif')
    """
    suffix = Path(path).suffix.lower()
    return f"{path}.png" if suffix in LOSSY or (suffix == ".gif" and channels == 3) else path


def write_picture(path: Path, pixels: Array, source: Path, name: str) -> None:
    """Writes (channels, rows, columns) as the format of `name`, with as many channels as `source`, without its tags."""
    kind = _FORMATS[Path(name).suffix.lower()]
    with _opened(source) as (image, bits):
        mode, foreign = image.mode, _of_tifffile(image, bits)
    if len(pixels) == 1 and mode in ("RGB", "RGBA"):
        pixels = np.repeat(pixels, 3, axis=0)
    plane: Array = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2))
    if foreign and kind == "TIFF":
        import tifffile

        colour = "rgb" if plane.ndim == 3 else "minisblack"
        tifffile.imwrite(path, plane, photometric=colour, metadata=None, software=False)
        return
    written = Image.fromarray(plane)
    if mode == "RGBA" and kind in ("PNG", "TIFF"):
        written.putalpha(255)
    written.save(path, format=kind)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    """The picture, and its bits per channel, which Pillow forgets once it has read the pixels."""
    require_file(path, "a picture")
    try:
        with Image.open(path) as image:
            require_room(path, (image.height, image.width, len(image.getbands())))
            bits = _bits(image)
            _check(image, bits, path)
            yield image, bits
    except UnidentifiedImageError as error:
        kind = "a file that is none"
        if path.suffix.lower() in (".tif", ".tiff"):
            kind += ", or a TIFF of a kind that is not known, such as numbers of 64 bits or colours in floats"
        raise InputError(f"expected a picture in {path}, got {kind}; replace it") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many types
        raise InputError(f"expected a whole picture in {path}, got '{reason(error)}'; copy it again") from error


@runtime_checkable
class _SeveralFrames(Protocol):
    """A picture of a format that can hold several."""

    n_frames: int


def _check(image: Any, bits: int, path: Path) -> None:
    if isinstance(image, _SeveralFrames) and image.n_frames > 1:
        raise InputError(f"expected one picture in {path}, got {image.n_frames}; write each to a file of its own")
    if image.format == "TIFF":
        _check_tiff(image, bits, path)
    if image.mode not in _KNOWN:
        raise InputError(f"expected grey levels or red, green and blue, got {image.mode} in {path}; convert it")
    if (turned := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:
        raise InputError(
            f"expected pixels in the order in which they are shown, got EXIF orientation {turned} in {path}; "
            "turn the picture itself and remove the tag, since masks have none"
        )
    if image.format == "PNG" and bits == 16 and not image.mode.startswith("I"):
        raise InputError(
            f"expected colours of 8 bits in a PNG, got 16 in {path}; write it as TIFF, of which 16 bits can be read"
        )


def _check_tiff(image: Any, bits: int, path: Path) -> None:
    pages = re.search(r"^images=(\d+)$", _description(image), re.MULTILINE)  # ImageJ's stacks have one directory
    if pages is not None and int(pages[1]) > 1:
        raise InputError(f"expected one picture in {path}, got {pages[1]} of ImageJ; write each to a file of its own")
    if image.tag_v2.get(_PHOTOMETRIC, 1) == 0 and bits > 1:
        raise InputError(
            f"PhotometricInterpretation: expected 0 as black in {path}, got WhiteIsZero; invert the values and write "
            "BlackIsZero"
        )
    require_all_pixels(image.tag_v2, path)


def _bits(image: Any) -> int:
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS, (1,))))
    if image.format == "PNG":
        return 16 if str(image.tile[0][3]).endswith("16B") else 8
    return 8


def _of_tifffile(image: Any, bits: int) -> bool:
    if image.format != "TIFF":
        return False
    kinds = image.tag_v2.get(_KIND, (1,))
    signed = any(kind != 1 for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    return bits > 16 or signed or (bits == 16 and image.mode not in ("I;16", "I;16B", "I;16L"))


def _tiff(image: Any, path: Path) -> Array:
    import tifffile

    with refusing(
        f"a TIFF without compression or with deflate in {path}", "write it anew", passing=(InputError, MemoryError)
    ):
        pixels: Array = np.asarray(tifffile.imread(path, key=0))  # other pages would be claims of its metadata
    planar = pixels.ndim == 3 and image.tag_v2.get(_PLANAR, 1) == 2
    return np.moveaxis(pixels, 0, 2) if planar else pixels


def _plain(image: Any, path: Path, *, opaque: bool) -> Any:
    """Without palette and transparency."""
    if opaque and "transparency" in image.info and _has_transparent(image):
        raise InputError(f"expected a picture that is opaque, got transparent pixels in {path}; flatten it")
    if image.mode in ("RGBA", "LA"):
        if np.array(image)[..., -1].min() < 255:
            raise InputError(f"expected a picture that is opaque, got transparent pixels in {path}; flatten it")
        return image.convert(image.mode[:-1])
    if image.format == "PNG" and image.mode == "I":
        return image.convert("I;16")
    return image.convert("RGB") if image.mode == "P" else image


def _has_transparent(image: Any) -> bool:
    """Whether a pixel has the colour, or the entry of the palette, that is transparent."""
    if image.mode in ("P", "L", "RGB", "1"):
        return bool(np.array(image.convert("RGBA"))[..., 3].min() < 255)
    return bool((np.array(image) == image.info["transparency"]).any())
