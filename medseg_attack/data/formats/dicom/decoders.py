"""Stored values of DICOM files: which transfer syntaxes can be decoded here, what to install for others, none GPL."""

from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID

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
            raise InputError(f"expected whole numbers in PixelData, got none in {path}; export it as CT or MR images")
        require_room(path, (dataset.get("NumberOfFrames") or 1, dataset.Rows, dataset.Columns))
        unused = _align_bits(dataset)
        pixels: Array = pixel_array(dataset)
    if unused:
        pixels = pixels >> unused
    return pixels if pixels.ndim == 3 else pixels[None]


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
