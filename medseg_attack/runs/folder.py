"""A run's folder, begun or gone on with: rows in parts that are each written once, a header last."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from medseg_attack.errors import InputError, refusing
from medseg_attack.runs.rows import Row, table_of
from medseg_attack.runs.stored_files import CONFIG_FILE, HEADER_FILE
from medseg_attack.storage.files import file_hash, open_tensors, whole
from medseg_attack.storage.heartbeats import worker_name
from medseg_attack.storage.json_files import (
    claim_json,
    digest,
    read_json,
    require_same_options,
    with_digest,
    write_json,
)
from medseg_attack.storage.paths import inside, require_file

SEAL, COPIES = "verified.json", "adversarial"  # what was written and read again
COLUMNS = "columns"  # field of a part's metadata: the hash of each column
CHUNK = 32  # cases; a scan that has more of them is a chunk of its own
TOGETHER = 32  # parts of which the rows are put into one piece of memory while they are read


@dataclass(frozen=True)
class RunFolder:
    """The rows of one model under one attack at one budget."""

    path: Path

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Begins a run, or goes on with one of the same `config` (all that determines its rows).

        Raises:
            InputError: the folder holds a run of another configuration.
        """
        file = path / CONFIG_FILE
        if not file.exists():
            claim_json(file, config)
        require_same_options(path, read_json(file), config)
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """All that determines the rows.

        Raises:
            InputError: there is none.
        """
        return read_json(self.path / CONFIG_FILE)

    def part(self, chunk: int) -> Path:
        return inside(self.path, f"parts/{chunk:05d}.parquet")

    def has(self, chunk: int) -> bool:
        """Whether a chunk's rows are there, and its images if it has any, both as they were written."""
        try:
            state = self.part(chunk).stat()
        except FileNotFoundError:
            return False
        return _is_whole(self.part(chunk), self._images(chunk), state.st_mtime_ns, state.st_size)

    def _images(self, chunk: int) -> Path:
        return inside(self.path, f"images/{chunk:05d}.safetensors")

    def write(self, chunk: int, rows: Sequence[Row], seconds: float, batch_size: int) -> None:
        """Writes a chunk's rows."""
        self.write_table(chunk, table_of(rows), seconds, batch_size)

    def write_table(self, chunk: int, table: pa.Table, seconds: float, batch_size: int) -> None:
        """Writes a chunk's table.

        The clock, the batch size and the process go into the file's metadata, since rows are the same in every run; so
        does a hash of the configuration, so that a part that strays into another run's folder is known for what it is,
        and those of columns and images, since Parquet takes changed bytes for other numbers. Each column has a hash of
        its own, so that a reader of a few columns does not read the others.
        """
        facts = {"seconds": f"{seconds:.4f}", "batch_size": str(batch_size), "config": digest(self.config)}
        facts["worker"] = worker_name()
        if (images := self._images(chunk)).exists():
            facts["images"] = file_hash(images)
        facts[COLUMNS] = json.dumps({name: _column_digest(table.column(name)) for name in table.column_names})
        table = table.replace_schema_metadata({**facts, "digest": digest(facts)})
        with whole(self.part(chunk)) as part:
            pq.write_table(table, part)

    def write_images(self, chunk: int, images: dict[str, NDArray[Any]]) -> None:
        """Writes a chunk's perturbed images: stored values in the file's type, or float32 in [0, 1] without a file."""
        with whole(self._images(chunk)) as part:
            save_file({case: np.ascontiguousarray(image) for case, image in images.items()}, part)

    def images(self, cases: Sequence[str]) -> list[NDArray[Any]]:
        """The stored images of `cases`.

        Raises:
            InputError: an image is not there, or not as it was written.
        """
        folder = self.path / "images"
        index = _index(folder, folder.stat().st_mtime_ns) if folder.is_dir() else {}
        absent = [case for case in cases if case not in index]
        if absent:
            raise InputError(
                f"expected the images of all cases in {self.path / 'images'}, got none of {', '.join(absent[:3])}; "
                "run the attack with --save-adversarial all"
            )
        images: dict[str, NDArray[Any]] = {}
        for file in dict.fromkeys(index[case] for case in cases):
            if self._is_changed(file):
                raise InputError(f"expected the images that were written in {file}, got others; run the attack again")
            with open_tensors(file) as stored:
                images |= {case: stored.get_tensor(case) for case in cases if index[case] == file}
        return [images[case] for case in cases]

    def changed_images(self) -> list[Path]:
        """The files of stored images that are not as they were written."""
        return [file for file in sorted(self.path.glob("images/*.safetensors")) if self._is_changed(file)]

    def _is_changed(self, images: Path) -> bool:
        state = images.stat()
        part = self.path / "parts" / f"{images.stem}.parquet"
        return not _are_as_written(images, part, state.st_mtime_ns, state.st_size)

    @property
    def has_rows(self) -> bool:
        """Whether a chunk was written."""
        return any(self.path.glob("parts/*.parquet"))

    def withdraw(self, pictures: str) -> None:
        """Removes what was written for a run without rows.

        Args:
            pictures: folder of pictures beside the rows.
        """
        for name in (pictures, "parts"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / CONFIG_FILE).unlink(missing_ok=True)

    def seal(self, facts: dict[str, Any]) -> None:
        """Marks the run as verified, as it is now."""
        write_json(self.path / SEAL, {**facts, "seal": self._state_digest()})

    @property
    def verified(self) -> bool:
        """Whether it was verified and nothing that was looked at changed since."""
        seal = self.path / SEAL
        return seal.exists() and read_json(seal).get("seal") == self._state_digest()

    def _state_digest(self) -> str:
        files = [self.path / CONFIG_FILE, *sorted(self.path.glob("parts/*.parquet"))]
        files += sorted(file for file in (self.path / COPIES).rglob("*") if file.is_file())
        return digest([[file.name, file_hash(file)] for file in files])

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes the header, without which readers take the run for unfinished."""
        write_json(self.path / HEADER_FILE, with_digest(facts))

    @property
    def seconds(self) -> float:
        """Time that the finished parts took."""
        return sum(float(seconds) for seconds in self._metadata("seconds"))

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that the finished parts were computed with, as far as they say."""
        return sorted({int(size) for size in self._metadata("batch_size")})

    def _metadata(self, key: str) -> list[str]:
        """A field of the metadata of each finished part that has it."""
        files = sorted(self.path.glob("parts/*.parquet"))
        each = [pq.read_schema(file).metadata or {} for file in files]
        return [metadata[key.encode()].decode() for metadata in each if key.encode() in metadata]

    def rows(self) -> pd.DataFrame:
        """All rows that are there, in the order of chunks.

        Raises:
            InputError: a part is damaged, or of another configuration.
        """
        rows: pd.DataFrame = self.table().to_pandas()
        return rows

    def table(self, needs: Callable[[str], bool] = lambda column: True) -> pa.Table:
        """All rows that are there, in the order of chunks; a column that a part lacks is null there.

        Args:
            needs: whether a column is needed; parts of older versions are read whole.

        Raises:
            InputError: a part is damaged, or of another configuration.
        """
        config = digest(self.config)
        files = sorted(self.path.glob("parts/*.parquet"))
        if not files:
            raise InputError(f"expected rows in {self.path / 'parts'}, got none; run the attack again")
        groups = [
            # in one piece: apart, the few rows of each part take ten times their memory
            _joined([_read(file, config, needs) for file in files[n : n + TOGETHER]]).combine_chunks()
            for n in range(0, len(files), TOGETHER)
        ]
        table = _joined(groups)
        return table.select([name for name in table.column_names if needs(name)])


@functools.lru_cache(maxsize=4)
def _index(folder: Path, changed_ns: int) -> dict[str, Path]:
    """Which file holds the image of which case."""
    index: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open_tensors(file) as stored:
            index |= dict.fromkeys(stored.keys(), file)
    return index


@functools.lru_cache(maxsize=100_000)
def _is_whole(file: Path, images: Path, changed_ns: int, size: int) -> bool:
    """Whether a part can be read and is as it was written; parts of older versions say nothing of their content."""
    try:
        written = read_part(file).schema.metadata or {}
    except InputError:
        return False
    return b"images" not in written or (images.is_file() and file_hash(images).encode() == written[b"images"])


@functools.lru_cache(maxsize=100_000)
def _are_as_written(images: Path, part: Path, changed_ns: int, size: int) -> bool:
    """Whether images have the hash that stands beside their rows; of images without rows nothing is known."""
    written = (read_part(part, lambda column: False).schema.metadata or {}) if part.is_file() else {}
    return b"images" not in written or file_hash(images).encode() == written[b"images"]


def _column_digest(column: pa.ChunkedArray) -> str:
    """SHA-256 of a column's type and values, in hex."""
    total = hashlib.sha256(str(column.type).encode())
    if pa.types.is_string(column.type) and not column.null_count:
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        _, ends, text = array.buffers()
        offsets = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1] if len(array) else [0, 0]
        total.update(np.diff(offsets).data)
        total.update(memoryview(text)[offsets[0] : offsets[-1]] if offsets[-1] else b"")
    elif pa.types.is_string(column.type):
        total.update(digest(column.to_pylist()).encode())
    else:
        total.update(np.ascontiguousarray(column.to_numpy()).data)
    return total.hexdigest()


def _content_digest(table: pa.Table, facts: Mapping[str, str]) -> str:
    """A hash of the rows and of what is stored beside them, as parts have it whose columns have none of their own."""
    total = hashlib.sha256(digest(dict(facts)).encode())
    for name in table.column_names:
        column = table.column(name)
        total.update(f"\n{name} {column.type}\n".encode())
        is_text = pa.types.is_string(column.type)
        total.update(digest(column.to_pylist()).encode() if is_text else column.to_numpy().tobytes())
    return total.hexdigest()


def read_part(file: Path, needs: Callable[[str], bool] = lambda column: True) -> pa.Table:
    """The rows of a part, and in the metadata of its schema how they were computed.

    Columns that are not needed are left out where each column can be told to be as it was written.

    Raises:
        InputError: it is damaged.
    """
    with refusing(f"rows in {file}", "run the attack again", passing=(InputError, MemoryError)):
        # a single file without threads, which takes half the time of `read_table`
        with pq.ParquetFile(require_file(file, "rows")) as parquet:
            written = {key.decode(): value.decode() for key, value in (parquet.metadata.metadata or {}).items()}
            written.pop("ARROW:schema", None)
            hashes: dict[str, str] = json.loads(written.get(COLUMNS, "{}"))
            names = [name for name in hashes if needs(name)]
            table = parquet.read(names if hashes else None, use_threads=False)
        content = written.pop("digest", "")
        is_whole = not hashes or table.column_names == names  # a column that is not there is read as none
        is_changed = not is_whole or (bool(content) and not _is_as_written(table, hashes, written, content))
    if is_changed:
        raise InputError(f"expected the rows that were written in {file}, got others; run the attack again")
    return table


def _is_as_written(table: pa.Table, hashes: Mapping[str, str], facts: Mapping[str, str], content: str) -> bool:
    """Whether columns of a part and its facts have the hashes that were written with them."""
    if not hashes:
        return content == _content_digest(table, facts)
    return content == digest(dict(facts)) and all(
        hashes.get(name) == _column_digest(table.column(name)) for name in table.column_names
    )


def _read(file: Path, config: str, needs: Callable[[str], bool]) -> pa.Table:
    table = read_part(file, needs)
    written_for = (table.schema.metadata or {}).get(b"config", b"none").decode()
    if written_for != config:
        raise InputError(
            f"expected parts of one configuration in {file.parent.parent}, got {file.name} of another (config.json has "
            f"{config[:12]}, the part {written_for[:12]}); delete that file and run the attack again"
        )
    table = table.replace_schema_metadata(None)
    # rows of version 2 were written when no attack could move the truth
    is_old = "n_target" in table.column_names and "n_target_adv" not in table.column_names
    return table.append_column("n_target_adv", table["n_target"]) if is_old else table


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The tables one below the other; a column that one lacks is null there."""
    return pa.concat_tables(tables, promote_options="permissive")
