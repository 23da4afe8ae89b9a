"""Pipes, devices, broken links, folders that may not be read, and files that claim terabytes: told, not waited for."""

import contextlib
import gzip
import os
import shutil
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers.command import medattack
from helpers.scans import acdc_paths, first_png, write_acdc, write_uw
from helpers.sources import WRITERS, opened, read_all, write_pictures

from medseg_attack.data.formats.memory import gunzipped, inflated, memory_limit
from medseg_attack.data.formats.nifti import read_nifti
from medseg_attack.data.formats.pictures import header, read_mask, read_picture
from medseg_attack.data.formats.png16 import read_png16
from medseg_attack.errors import InputError
from medseg_attack.registry.table import entries, load

load()


@contextlib.contextmanager
def a_minute() -> Iterator[None]:
    """A scope that ends with a TimeoutError after a minute: an open pipe is waited for without an end."""

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def as_socket(path: Path) -> None:
    short = Path(f"/tmp/.{os.getpid()}.socket")  # the system allows 107 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short))
    shutil.move(short, path)


ODD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": as_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to(path.with_name("absent")),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
}


def test_every_format_is_among_these() -> None:
    assert set(WRITERS) == {name for name, entry in entries.items() if entry.kind == "dataset"}


def answer(form: str, root: Path) -> str:
    """The refusal of a source, or its notes."""
    try:
        read_all(form, root)
    except InputError as error:
        return str(error)
    return " ".join(opened(form, root).notes)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("form", WRITERS)
def test_what_is_no_regular_file_is_refused_by_its_name_whatever_it_stands_for(
    form: str, odd: str, tmp_path: Path
) -> None:
    root = WRITERS[form](tmp_path / "source")
    kept = tmp_path / "kept"
    files = [file for file in sorted(root.rglob("*.*")) if file.is_file()]
    for path in {file.suffix + file.parent.name[:4]: file for file in files}.values():  # one of each kind
        shutil.move(path, kept)
        ODD[odd](path)
        with a_minute():
            message = answer(form, root)
        # a folder may stand beside the scans that it is none of
        assert path.name.split(".")[0] in message or (form, odd) == ("dicom", "folder")
        assert "[Errno" not in message
        path.rmdir() if odd == "folder" else path.unlink()
        shutil.move(kept, path)
    read_all(form, root)


@pytest.mark.parametrize("form", WRITERS)
def test_a_folder_that_cannot_be_read_is_no_folder_without_scans(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = WRITERS[form](tmp_path / "source")
    closed = {path.parent for path in root.rglob("*.*") if path.is_file()} - {root}
    for folder in sorted(closed):

        def refusing(system_call: Any, folder: Path = folder) -> Any:
            def call(path: Any = ".") -> Any:
                if Path(path) == folder:
                    raise PermissionError(13, "Permission denied", str(path))
                return system_call(path)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", refusing(os.listdir))
            patch.setattr(os, "scandir", refusing(os.scandir))
            with pytest.raises(InputError, match="Permission denied") as caught:
                read_all(form, root)
        assert str(folder) in str(caught.value)


def test_a_link_to_the_folder_of_a_dicom_patient_is_noted(tmp_path: Path) -> None:
    root = WRITERS["dicom"](tmp_path / "source")
    shutil.move(root / "pat1", tmp_path / "elsewhere")
    (root / "pat1").symlink_to(tmp_path / "elsewhere")
    assert "pat1 is left out: it is a link to a folder" in " ".join(opened("dicom", root).notes)


@pytest.mark.parametrize("form", ["acdc", "uw_madison"])
def test_a_link_to_the_folder_of_a_patient_is_followed_or_refused_where_it_leads_nowhere(
    form: str, tmp_path: Path
) -> None:
    root = WRITERS[form](tmp_path / "source")
    patient = next(path for path in sorted(root.rglob("*1")) if path.is_dir())
    shutil.move(patient, tmp_path / "elsewhere")
    patient.symlink_to(tmp_path / "elsewhere")
    n = len(opened(form, root).scans)
    patient.unlink()
    patient.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="a link that leads nowhere"):
        opened(form, root)
    assert n == 4


def test_a_description_that_is_a_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    root = WRITERS["decathlon"](tmp_path / "source")
    (root / "dataset.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"dataset\.json, got a link that leads nowhere"):
        opened("decathlon", root)


def png(path: Path, side: int, bits: int = 16, rows: int = 1) -> Path:
    """A PNG of zeros that claims `side` rows and columns."""
    row = bytes(1 + side * bits // 8)
    stream = zlib.compressobj(9)
    data = b"".join(stream.compress(row) for _ in range(rows)) + stream.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def nifti(path: Path, shape: tuple[int, ...], **fields: Any) -> Path:
    """A NIfTI file that claims a shape, and holds no voxel."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def npy(path: Path) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (30_000, 30_000)})
    os.truncate(path, path.stat().st_size + 900_000_000)  # of holes: it takes no room on the disk
    return path


@pytest.mark.parametrize(
    ("read", "write"),
    [
        (read_nifti, lambda folder: nifti(folder / "a.nii", (30_000, 30_000, 1))),
        (read_nifti, lambda folder: nifti(folder / "a.nii.gz", (30_000, 30_000, 1))),
        (read_nifti, lambda folder: nifti(folder / "a.nii.gz", (32_767,) * 7)),
        (read_png16, lambda folder: png(folder / "a.png", 30_000)),
        (read_picture, lambda folder: png(folder / "a.png", 30_000, 8)),
        (read_mask, lambda folder: npy(folder / "a.npy")),
    ],
)
def test_a_file_that_claims_more_than_the_limit_is_refused_before_it_is_read(
    read: Callable[[Path], Any], write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    with pytest.raises(InputError, match=r"at most 6 GB of memory, got 3.,.* GB in .*allow more with --max-gb"):
        read(path)


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", 200, rows=200)
    assert read_png16(path).shape == (200, 200)
    with memory_limit(0.0003), pytest.raises(InputError, match="200 x 200 values"):
        read_png16(path)
    root = write_pictures(tmp_path / "source")
    words = "prepare", root, "--format", "folder", "--out", tmp_path / "out"
    assert "16 x 12" not in medattack(*words, "--max-gb", "0.001").stderr


def test_a_large_picture_within_the_limit_is_read_without_a_warning(tmp_path: Path) -> None:
    assert header(png(tmp_path / "a.png", 20_000, 8)) == (False, 8)


def test_a_deflated_stream_ends_at_the_limit(tmp_path: Path) -> None:
    stream = zlib.compressobj(9, wbits=-15)
    compressed = stream.compress(bytes(3_000_000)) + stream.flush()
    assert inflated(compressed, tmp_path / "a.dcm") == bytes(3_000_000)
    with memory_limit(0.002), pytest.raises(InputError, match="a deflated file"):
        inflated(compressed, tmp_path / "a.dcm")


def test_what_follows_in_a_gzip_file_ends_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(5_000_000)))
    with gunzipped(path) as stream:
        assert stream.read(10) == bytes(10)
    with memory_limit(0.002), pytest.raises(InputError, match="a gzip file"), gunzipped(path) as stream:
        stream.read(10)


def test_a_flipped_bit_in_a_gzipped_volume_is_found(tmp_path: Path) -> None:
    """By the checksum, which stands behind the voxels: nibabel never reads that far."""
    image, _ = acdc_paths(write_acdc(tmp_path, patients=3))
    content = bytearray(gzip.compress(gzip.decompress(image.read_bytes()), compresslevel=0))
    accepted = 0
    for place in range(100, len(content), 97):
        content[place] ^= 8
        image.write_bytes(content)
        try:
            read_nifti(image)
            accepted += 1
        except InputError as error:
            assert str(image) in str(error)  # noqa: PT017
        content[place] ^= 8
    assert accepted == 0


def test_files_of_a_competition_that_are_no_files_are_named(tmp_path: Path) -> None:
    root = write_uw(tmp_path / "uw")
    path = first_png(root)
    path.unlink()
    os.mkfifo(path)
    with a_minute():
        message = medattack("prepare", root, "--format", "uw_madison", "--out", tmp_path / "out", code=2).stderr
    assert "got a named pipe" in " ".join(message.split())
    assert not (tmp_path / "out").exists()
