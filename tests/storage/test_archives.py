"""Archives of torch whose directory does not say what their members are."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medseg_attack.errors import InputError
from medseg_attack.models.importers.torch_export import exported
from medseg_attack.models.importers.torchscript import torchscript
from medseg_attack.models.importers.weights import read_tensors
from medseg_attack.storage.archives import require_sound


def write_script(path: Path) -> None:
    torch.jit.trace(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8)).save(path)


def write_exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Conv2d(1, 2, 3), (torch.zeros(1, 1, 8, 8),)), path)


def write_state(path: Path) -> None:
    torch.save(nn.Conv2d(1, 2, 3).state_dict(), path)


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "net.ts": (write_script, torchscript),
    "net.pt2": (write_exported, lambda path: exported(path, True)),
    "net.pth": (write_state, read_tensors),
}


def larger(content: bytes) -> bytes:
    """Every member is said to be of 1.9 GB, in the directory alone."""
    place = 0
    while (place := content.find(b"PK\x01\x02", place)) >= 0:
        content = content[: place + 24] + struct.pack("<I", 1_900_000_000) + content[place + 28 :]
        place += 4
    return content


def flipped(content: bytes) -> bytes:
    """A bit in the middle of the largest part of the file."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize("name", READERS)
def test_a_member_of_another_size_is_refused_before_memory_is_taken_for_it(name: str, tmp_path: Path) -> None:
    write, read = READERS[name]
    path = tmp_path / name
    write(path)
    require_sound(path)
    read(path)
    path.write_bytes(larger(path.read_bytes()))
    with pytest.raises(zipfile.BadZipFile, match=r"has [0-9]+ bytes, not 1900000000"):
        require_sound(path)
    with pytest.raises(InputError, match=r"has [0-9]+ bytes, not 1900000000"):
        read(path)


def test_a_changed_bit_is_refused_and_what_is_no_archive_passes(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.arange(4096.0)}, path)
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        require_sound(path)
    path.write_bytes(b"no archive")
    require_sound(path)
