"""Files that are regular where they are read, and either whole or absent where they are written."""

import errno
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from medseg_attack.errors import FULL, InputError, refusing
from medseg_attack.storage.paths import require_file

CARD = "card.json"  # written last into the folder of a checkpoint
ENDS = 4096  # bytes at either end of a file
_written = threading.Event()  # whether this process finished a file


def has_written() -> bool:
    """Whether this process finished a file."""
    return _written.is_set()


@contextmanager
def folder_of(path: Path) -> Iterator[None]:
    """A scope in which the folder of a path is there; those that it made are gone after it if they are still empty."""
    absent = list(takewhile(lambda folder: not folder.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # one is in use, and so are those above it
            for folder in absent:
                folder.rmdir()


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def is_part(name: str, target: str = r".+") -> bool:
    """Whether a file's name is that of a `.part` which this package writes, of the file `target` (a pattern)."""
    return re.fullmatch(rf"\.(?:{target})\.[0-9a-f]+\.part", name) is not None


def _synchronise(path: Path) -> None:
    """Waits until the disk has the file: a power cut would leave an empty one under its final name otherwise."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes `path`'s place when the block ends without an error.

    A killed process leaves at most a `.part` file, which no reader looks at and the next process that writes `path`
    removes. The name has a random part, since two processes may write the same file (two shards the header of a run,
    each for itself); the file is then of the one that is ready first.

    Raises:
        InputError: the system refuses: the disk is full, a folder is a file or may not be written to.
    """
    part = _part_of(path)
    with writing(path), folder_of(path):
        try:
            left = [name for name in _parts_in(path.parent) if is_part(name, re.escape(path.name))]
            before = _inode(path)
            yield part
            if _inode(path) in (None, before):
                _synchronise(part)
                os.replace(part, path)
                _written.set()
            for name in left:
                path.with_name(name).unlink(missing_ok=True)
        except FileNotFoundError as error:
            if error.filename is None or Path(error.filename) != part or not path.exists():
                raise
        finally:
            with suppress(OSError):
                part.unlink()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@lru_cache(maxsize=256)
def _parts_in(folder: Path) -> tuple[str, ...]:
    """The `.part` files in a folder; looked for once, since a folder may hold thousands of files that are written."""
    return tuple(name for name in os.listdir(folder) if is_part(name))


def write_new(path: Path, text: str) -> bool:
    """Writes a text if there is no file yet; False if there is. Of processes that do so at once, one gets True."""
    part = _part_of(path)
    with writing(path), folder_of(path):
        try:
            part.write_text(text, encoding="utf-8")
            _synchronise(part)
            os.link(part, path)
            _written.set()
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            if path.exists():
                return False
            os.replace(part, path)  # a disk without hard links
            _written.set()
        finally:
            with suppress(OSError):
                part.unlink()
    return True


def require_own(path: Path, mark: re.Pattern[bytes]) -> None:
    """Refuses to overwrite a file that this package did not write; an empty one holds nothing that could be lost.

    Args:
        mark: what stands at the beginning or the end of what this package writes there.

    Raises:
        InputError: the file lacks the mark, or is no regular file.
    """
    if not os.path.lexists(path):
        return
    ends = b"\0"  # of a device, a folder or a dangling link
    if path.is_file():
        with path.open("rb") as file:
            ends = file.read(ENDS)
            file.seek(max(0, path.stat().st_size - ENDS))
            ends += file.read(ENDS)
    if ends and not mark.search(ends):
        raise InputError(
            f"expected a new file to write to, or one that medattack wrote, got {path}, which is something else; "
            "name another file"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A scope in which the system's refusal to write `path` becomes a sentence.

    Raises:
        InputError: in place of an OSError, or of an error of safetensors that is one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = errno_of(error)
        if number is None and isinstance(error, SafetensorError):
            raise
        reason = str(error) if number is None else os.strerror(number)
        file = error.filename if isinstance(error, OSError) else None
        if file is not None and not str(file).endswith(".part"):
            reason = f"{reason}: {file}"
        if number in FULL:
            raise InputError(
                f"expected room on the disk to write {path}, got '{reason}'; "
                "free some space and run the same command again: what was finished is kept"
            ) from error
        raise InputError(
            f"expected to be able to write {path}, got '{reason}'; make its folder writable, or choose another folder"
        ) from error


def errno_of(error: BaseException | None) -> int | None:
    """The system's number of an error, which safetensors has in its message alone; None of any other error."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    return int(number[1]) if number else None


@contextmanager
def open_tensors(
    path: Path, framework: str = "numpy", *, todo: str = "delete the file and run the same command again"
) -> Iterator[Any]:
    """An open file of safetensors, which reads single tensors and the metadata.

    Args:
        todo: what to do about a damaged file, which may be one that a person named by mistake.

    Raises:
        InputError: the file is absent, cut off, or of another format.
    """
    with (
        refusing(f"tensors in {path}", todo, (OSError, SafetensorError)),
        safe_open(require_file(path, "tensors"), framework=framework) as file,
    ):
        yield file


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with require_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a trained model, whole."""
    return (folder / CARD).is_file()
