"""Stored values of DICOM files: which transfer syntaxes can be decoded here, what to install for others, none GPL."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, RLELossless

from medseg_attack.data.formats.dicom.fields import limits
from medseg_attack.data.formats.dicom.reading import reading
from medseg_attack.data.formats.memory import require_room
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError

_GDCM, _JPEG_LS, _JPEG_2000 = "python-gdcm", "pyjpegls", "pylibjpeg pylibjpeg-openjpeg"

# name, what decodes it: "" for what pydicom itself does
_SYNTAXES = {
    "1.2.840.10008.1.2": ("implicit VR, little endian", ""),
    "1.2.840.10008.1.2.1": ("explicit VR, little endian", ""),
    "1.2.840.10008.1.2.1.99": ("deflated", ""),
    "1.2.840.10008.1.2.2": ("explicit VR, big endian", ""),
    "1.2.840.10008.1.2.5": ("RLE", ""),
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", _GDCM),
    "1.2.840.10008.1.2.4.51": ("JPEG extended", _GDCM),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", _GDCM),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless, first order", _GDCM),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", _JPEG_LS),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near-lossless", _JPEG_LS),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", _JPEG_2000),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", _JPEG_2000),
    "1.2.840.10008.1.2.4.201": ("HTJ2K lossless", _JPEG_2000),
    "1.2.840.10008.1.2.4.202": ("HTJ2K lossless, RPCL", _JPEG_2000),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", _JPEG_2000),
}

_GDCM_FIRST = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # with loss, and other libraries round otherwise
_JPEG_SYNTAXES = {uid for uid, (name, _) in _SYNTAXES.items() if name.startswith("JPEG") and "2000" not in name}
_JPEG_START = b"\xff\xd8"  # of JPEG and of JPEG-LS
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # of a code stream, whose sizes follow at once
_JP2_START = b"\0\0\0\x0cjP  "  # of a file of JPEG 2000, which some put where the code stream should be alone
_SIZED = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG's and JPEG-LS' frame headers


def matrix() -> dict[str, str]:
    """Per transfer syntax the libraries that decode it here, or the line that installs one."""
    return {name: _decoded_by(uid) or f"missing: {_install(needs)}" for uid, (name, needs) in _SYNTAXES.items()}


def check_decodable(syntax: str, path: Path) -> None:
    """Passes if the pixels of a file in that transfer syntax can be decoded here.

    Raises:
        InputError: they cannot; it names the syntax and what to install.
    """
    if syntax in _SYNTAXES and _decoded_by(syntax):
        return
    uid = UID(syntax)
    name, needs = _SYNTAXES.get(syntax, (uid.name if uid.is_transfer_syntax else "a syntax of its own", ""))
    number = f" ({syntax})" if uid.is_valid else ""
    todo = f"run: {_install(needs)}" if needs else "export the series uncompressed (explicit VR, little endian)"
    raise InputError(f"expected pixels that can be decoded here, got {name}{number} in {path}; {todo}")


def decoded(path: Path) -> Array:
    """The stored values of all frames of a file, (frames, rows, columns).

    Raises:
        InputError: it is cut off or cannot be decoded, or holds no whole numbers.
    """
    with reading(path):
        dataset = pydicom.dcmread(path)
        check_decodable(str(dataset.file_meta.get("TransferSyntaxUID", "")), path)
        if "PixelData" not in dataset:
            floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
            todo = "export it as CT or MR images" if floats else "copy it again"
            raise InputError(f"expected whole numbers in PixelData, got none in {path}; {todo}")
        require_room(path, (dataset.get("NumberOfFrames") or 1, dataset.Rows, dataset.Columns))
        bits = require_size(dataset, path)
        low, high = limits(int(dataset.BitsStored), bool(dataset.get("PixelRepresentation")))
        unused = _align_bits(dataset) if bits is None or bits > int(dataset.BitsStored) else 0
        with refusing_longer_segments(dataset, path):
            pixels: Array = pixel_array(dataset, decoding_plugin=_plugin(dataset.file_meta.TransferSyntaxUID))
    if unused:
        pixels = pixels >> unused
    if pixels.min() < low or pixels.max() > high:
        raise InputError(
            f"expected values from {low} to {high} by BitsStored and PixelRepresentation, got {pixels.min()} to "
            f"{pixels.max()} in {path}; export it again"
        )
    return pixels if pixels.ndim == 3 else pixels[None]


def require_size(dataset: Dataset, path: Path) -> int | None:
    """The most bits that a compressed frame says its values have; None where frames do not say it.

    Raises:
        InputError: the pixels are not as many as the header says, uncompressed ones or those of a frame, or a frame is
            of another compression or sign: decoders would take the wrong ones, or end the process.
    """
    bits = None
    rows, columns, n_frames = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    pixels = dataset.get("PixelData") or b""
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if not get_decoder(syntax).is_encapsulated:
        expected = get_expected_length(dataset)
        if len(pixels) - expected >= max(2, expected // (max(rows, columns) * n_frames)):  # less than a line is padding
            raise _other_size(f"{expected} bytes", f"{len(pixels)}", path)
    elif syntax != RLELossless:
        for frame in generate_frames(pixels, number_of_frames=n_frames):
            if syntax in _JPEG_SYNTAXES and not frame.startswith(_JPEG_START):
                name = _SYNTAXES[syntax][0]
                raise InputError(f"expected {name} in PixelData, got another compression in {path}; export it again")
            size = _size(frame)
            if size is None:
                continue
            if size[:2] != (rows, columns) or size[2] > int(dataset.BitsAllocated):
                expected = f"{rows} x {columns} values of up to {dataset.BitsAllocated} bits"
                raise _other_size(expected, f"{size[0]} x {size[1]} of {size[2]}", path)
            if size[3] and not dataset.get("PixelRepresentation"):
                raise InputError(
                    f"expected values without sign by PixelRepresentation, got a signed JPEG 2000 stream in {path}; "
                    "export it again"
                )
            bits = max(bits or 0, size[2])
    return bits


@contextmanager
def refusing_longer_segments(dataset: Dataset, path: Path) -> Iterator[None]:
    """A scope in which more pixels in an RLE segment than the header says, of which pydicom warns, are refused.

    Raises:
        InputError: there are more, by a row or a column.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if match := re.search(r"non-conformant padding - (\d+) vs\. (\d+) bytes", str(warning.message)):
            got, expected = map(int, match.groups())
            if got - expected >= min(dataset.Rows, dataset.Columns):
                raise _other_size(f"{expected} bytes", str(got), path)


def _other_size(expected: str, got: str, path: Path) -> InputError:
    return InputError(
        f"expected pixels of {expected} by Rows, Columns, NumberOfFrames and BitsAllocated, got {got} in {path}; "
        "export it again"
    )


def _size(frame: bytes) -> tuple[int, int, int, bool] | None:
    """Rows, columns, bits and whether they have a sign, by the header of a JPEG, JPEG-LS or JPEG 2000 stream.

    None of anything else. JPEG and JPEG-LS streams have no sign.
    """
    if frame.startswith(_JP2_START):
        frame = frame[max(frame.find(_JPEG_2000_START), 0) :]
    if frame.startswith(_JPEG_2000_START) and len(frame) > 42:
        columns, rows, left, top = (int.from_bytes(frame[n : n + 4], "big") for n in (8, 12, 16, 20))
        return rows - top, columns - left, (frame[42] & 0x7F) + 1, frame[42] > 0x7F
    place = 2
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in _SIZED:
            rows, columns = (int.from_bytes(frame[place + n : place + n + 2], "big") for n in (5, 7))
            return rows, columns, frame[place + 4], False
        place += 2 + length
    return None


def _plugin(syntax: str) -> str:
    """The library that decodes a lossless syntax: any but GDCM, which ends the process on some that are damaged."""
    others = [name for name in get_decoder(UID(syntax)).available_plugins if name != "gdcm"]
    return others[0] if syntax not in _GDCM_FIRST and others else ""


def _align_bits(dataset: Dataset) -> int:
    """Takes the bits below the stored ones for stored, which is all that decoders can do; returns how many they are."""
    unused = int(dataset.get("HighBit", dataset.BitsStored - 1)) + 1 - int(dataset.BitsStored)
    if unused > 0:
        dataset.BitsStored += unused
    return max(unused, 0)


def _install(needs: str) -> str:
    return f"pip install {needs}"


def _decoded_by(syntax: str) -> str:
    decoder = get_decoder(UID(syntax))
    if not decoder.is_encapsulated:
        return "pydicom"
    return ", ".join(decoder.available_plugins)
