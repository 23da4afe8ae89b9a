"""Ways in which a file, a name or a folder may be damaged."""

import csv
import gzip
import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydicom
import yaml
from pyarrow import parquet
from pydicom.uid import UID

ODD = (None, -1, 0, 1, 1e300, float("nan"), 2**63, "", "x" * 5000, "../../x", "[/x]", "\x1b[31m", [], {}, [[[]]], True)
NAMES = ("[red].bin", "a\x1b[31m", "..x", "x" * 200, "two\nlines", "=1+1", "-rf", "half \udcff", "CON", " ", "é", "é")
WORDS = ("", "nan", "-1", "1e400", "0", "=1+1", "\x1b[31m", "1 2 3", "x" * 300, "½", "9" * 30)

Way = Callable[[Path, random.Random], None]


def damage(folder: Path, rng: random.Random) -> str:
    """Damages one file below `folder`, or in one of ten cases two; says how."""
    texts = []
    for _ in range(1 if rng.random() < 0.9 else 2):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            break
        file = rng.choice(files)
        ways = _ways(file) if file.parent == folder else [*_ways(file), rename_folder, replace_folder]
        way = rng.choice(ways)
        way(file, rng)
        texts.append(f"{way.__name__} {file.relative_to(folder)}")
    return ", ".join(texts)


def _ways(file: Path) -> list[Way]:
    """The ways to damage a file; those that know its format are drawn half of the time."""
    general: list[Way] = [flip, flip, truncate, extend, blank, swap, rename, replace_by_odd, remove, add_odd]
    special = _special(file)
    return [*general, *special * (len(general) // len(special))] if special else general


def _special(file: Path) -> list[Way]:
    if file.name.endswith(".nii.gz"):
        return [flip_inside, flip_header]
    ending = {
        ".json": edit_field,
        ".yaml": edit_field,
        ".csv": edit_cell,
        ".npy": edit_array,
        ".png": edit_chunk,
        ".tif": edit_tag,
        ".parquet": edit_column,
        ".safetensors": edit_tensors,
        ".pth": edit_member,
        ".ts": edit_member,
    }
    if file.suffix in ending:
        return [ending[file.suffix]]
    with file.open("rb") as stream:
        return [edit_element, flip] if stream.read(132)[128:] == b"DICM" else []


def flip(file: Path, rng: random.Random) -> None:
    file.write_bytes(_flipped(file.read_bytes(), rng, 400))


def _flipped(content: bytes, rng: random.Random, first: int) -> bytes:
    """The content with some bits flipped, half of the time in the first bytes alone."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if result:
            result[rng.randrange(min(len(result), rng.choice((first, 1 << 30))))] ^= 1 << rng.randrange(8)
    return bytes(result)


def flip_inside(file: Path, rng: random.Random) -> None:
    _rewrite(file, lambda content: _flipped(content, rng, 352))


def flip_header(file: Path, rng: random.Random) -> None:
    """Writes an odd number into the header of a NIfTI file."""
    value = struct.pack("<f", rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-30)))
    place = rng.choice([*range(40, 124, 2), *range(252, 344, 4)])
    number = rng.choice((value, struct.pack("<h", rng.choice((0, -1, 1, 7, 32767, 256)))))
    _rewrite(file, lambda content: content[:place] + number + content[place + len(number) :])


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes what a gzipped file holds; of what is none any more, its bytes."""
    content = file.read_bytes()
    try:
        changed = gzip.compress(change(gzip.decompress(content)), 1)
    except (OSError, EOFError, zlib.error):
        changed = change(content)
    file.write_bytes(changed)


def truncate(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) + 1)])


def extend(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.choice((1, 100, 5000))))


def blank(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content) + 1)
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    file.write_bytes(bytes(content))


def swap(file: Path, rng: random.Random) -> None:
    """Puts the content of a neighbour into the file."""
    others = sorted(path for path in file.parent.rglob("*") if path.is_file() and not path.is_symlink())
    file.write_bytes(rng.choice(others).read_bytes())


def rename(file: Path, rng: random.Random) -> None:
    name = rng.choice(NAMES) + (file.suffix if rng.random() < 0.7 else "")
    if not os.path.lexists(file.with_name(name)):
        file.rename(file.with_name(name))


def rename_folder(file: Path, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    if not os.path.lexists(file.parent.with_name(name)):
        file.parent.rename(file.parent.with_name(name))


def replace_folder(file: Path, rng: random.Random) -> None:
    """Puts a file, a pipe or a link to nothing where a folder was."""
    file.parent.rename(file.parent.with_name(f"moved {rng.random()}"))
    _write_odd(file.parent, rng)


def remove(file: Path, rng: random.Random) -> None:
    file.unlink()


def replace_by_odd(file: Path, rng: random.Random) -> None:
    file.unlink()
    _write_odd(file, rng)


def add_odd(file: Path, rng: random.Random) -> None:
    """Puts an odd thing beside the file, often with its ending."""
    name = rng.choice((*NAMES, file.stem[:-1] + "9"))
    path = file.with_name(name + rng.choice(("".join(file.suffixes[-2:]), file.suffix, "")))
    if not os.path.lexists(path):
        _write_odd(path, rng)


def _write_odd(path: Path, rng: random.Random) -> None:
    """A folder, a link to nothing, to itself or to the world, a pipe, an empty file."""
    match rng.choice(("folder", "nothing", "itself", "world", "device", "pipe", "empty")):
        case "folder":
            path.mkdir()
        case "nothing":
            path.symlink_to("/nowhere")
        case "itself":
            path.symlink_to(path.name)
        case "world":
            path.symlink_to("/etc/hostname")
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()


def edit_field(file: Path, rng: random.Random) -> None:
    """Replaces or removes a value of JSON or YAML, at any depth."""
    load, write = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    try:
        content = load(file.read_text())
    except (ValueError, yaml.YAMLError):
        flip(file, rng)
        return
    _edit(content, rng)
    file.write_text(write(content))


def _edit(content: Any, rng: random.Random) -> None:
    places = list(_places(content))
    if places:
        holder, key = rng.choice(places)
        chance = rng.random()
        if chance < 0.2 and isinstance(holder, dict):
            del holder[key]
        elif chance < 0.4:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else other[place]))
        elif chance < 0.5 and isinstance(holder, dict):
            holder[rng.choice(("", "\x1b[31m", "[/x]", "-1", "x" * 300))] = holder.pop(key)
        else:
            holder[key] = rng.choice(ODD)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def edit_cell(file: Path, rng: random.Random) -> None:
    rows = list(csv.reader(io.StringIO(file.read_text(errors="surrogateescape"), newline="")))
    row = rng.choice(rows) if rows else []
    if row:
        row[rng.randrange(len(row))] = rng.choice(WORDS)
    with file.open("w", newline="", errors="surrogateescape") as stream:
        csv.writer(stream).writerows(rows)


def edit_array(file: Path, rng: random.Random) -> None:
    """Replaces an array by one of another shape, type or range."""
    try:
        array = np.load(file)
    except (ValueError, EOFError, OSError):
        flip(file, rng)
        return
    match rng.randrange(6):
        case 0:
            array = array[..., :-1]
        case 1:
            array = array[None]
        case 2:
            array = array[:0]
        case 3:
            array = np.full(array.shape, float("nan"), np.float32)
        case 4:
            array = array.astype(rng.choice((np.int64, np.complex64, np.bool_, "U3", np.float16)))
        case 5:
            array = np.full(array.shape, 255, array.dtype)
    np.save(file, array)


def edit_chunk(file: Path, rng: random.Random) -> None:
    """Changes a chunk of a PNG, or adds one, with a right checksum."""
    content = file.read_bytes()
    chunks, place = [], 8
    while place + 12 <= len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + size]])
        place += size + 12
    if not chunks:
        flip(file, rng)
        return
    if rng.random() < 0.5:
        chunk = rng.choice(chunks)
        chunk[1] = _flipped(chunk[1], rng, 400)
    else:
        name = rng.choice((b"tRNS", b"PLTE", b"pHYs", b"gAMA", b"eXIf", b"iTXt", b"zTXt", b"acTL", b"IHDR", b"IDAT"))
        chunks.insert(1, [name, rng.randbytes(rng.choice((0, 1, 4, 9, 300)))])
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    file.write_bytes(content[:8] + body)


def edit_tag(file: Path, rng: random.Random) -> None:
    """Changes a byte of the directory of a TIFF file."""
    content = bytearray(file.read_bytes())
    if len(content) > 8:
        (start,) = struct.unpack("<I", content[4:8])
        end = min(len(content), start + 180)
        if start < end:
            content[rng.randrange(start, end)] = rng.choice((0, 1, 2, 8, 16, 32, 255, rng.randrange(256)))
    file.write_bytes(bytes(content))


def edit_column(file: Path, rng: random.Random) -> None:
    """Changes, drops or retypes a column of a table."""
    try:
        table = parquet.read_table(io.BytesIO(file.read_bytes()))  # pyarrow takes no path that is not UTF-8
    except (pa.ArrowException, OSError):
        flip(file, rng)
        return
    if not table.num_columns:
        flip(file, rng)
        return
    n = rng.randrange(table.num_columns)
    column = table.column(n)
    value = rng.choice((None, float("nan"), -1, 2**62, 1e300, "\x1b[31m", "", [1]))
    match rng.randrange(4):
        case 0:
            table = table.remove_column(n)
        case 1:
            table = table.set_column(n, table.column_names[n], pa.array([value] * len(column)))
        case 2:
            table = table.slice(0, rng.randrange(table.num_rows + 1))
        case 3:
            values = column.to_pylist()
            if values:
                other = rng.choice(values)
                opposite = not other if isinstance(other, bool) else other if isinstance(other, str | None) else -other
                values[rng.randrange(len(values))] = opposite
            table = table.set_column(n, table.column_names[n], pa.array(values))
    content = io.BytesIO()
    parquet.write_table(table, content)
    file.write_bytes(content.getvalue())


def edit_tensors(file: Path, rng: random.Random) -> None:
    """Changes the header of a safetensors file."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8].ljust(8, b"\0"))
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        flip(file, rng)
        return
    _edit(header, rng)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def edit_member(file: Path, rng: random.Random) -> None:
    """Flips bits in a member of an archive of torch, with a right checksum."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
        flip(file, rng)
        return
    if not members:
        flip(file, rng)
        return
    name = rng.choice(sorted(members))
    if rng.random() < 0.2:
        del members[name]
    else:
        members[name] = _flipped(members[name], rng, 100)
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def edit_element(file: Path, rng: random.Random) -> None:
    """Changes, removes or empties an element of a DICOM file, at any depth."""
    try:
        dataset = pydicom.dcmread(file)
        holder, element = rng.choice([(element_of, item) for element_of, item in _elements(dataset)])
        match rng.randrange(5):
            case 0:
                del holder[element.tag]
            case 1:
                element.value = None if element.VR != "SQ" else []
            case 2:
                other = rng.choice([item for _, item in _elements(dataset) if item.VR == element.VR])
                element.value = other.value
            case 3:
                pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
                element._value = _odd_value(element.VR, rng)
            case 4:
                if element.VM > 1 and element.VR != "SQ":
                    element.value = list(element.value)[:-1]
        dataset.save_as(file)
    except Exception:  # pydicom raises many types on what an earlier damage left, and on values that no file can hold
        flip(file, rng)


def _odd_value(vr: str, rng: random.Random) -> Any:
    if vr in ("US", "UL", "SS", "SL", "UV"):
        return rng.choice((0, 1, 2, 7, 255, 32767))
    if vr in ("FD", "FL"):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if vr == "DS":
        return pydicom.multival.MultiValue(str, rng.choice((["0"], ["-1"], ["1e30"], ["x"], ["1"] * 9)))
    if vr == "UI":
        return UID(rng.choice(("", "1.2.3", "1.2.840.10008.1.2.4.50", "1.2.840.10008.5.1.4.1.1.88.11", "x")))
    if vr in ("OB", "OW", "OF"):
        return rng.randbytes(rng.choice((0, 2, 100)))
    if vr == "SQ":
        return pydicom.sequence.Sequence([])
    return rng.choice(WORDS)


def _elements(dataset: pydicom.Dataset) -> Iterator[tuple[pydicom.Dataset, pydicom.DataElement]]:
    for element in dataset:
        yield dataset, element
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
