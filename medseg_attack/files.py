"""Files that are regular where they are read, and either whole or absent where they are written."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from medseg_attack.errors import InputError, absent, reason

CARD = "card.json"  # written last into the folder of a checkpoint
FULL = (errno.ENOSPC, errno.EDQUOT)  # the system's numbers for a full disk or quota

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: Path, content: str = "a file") -> Path:
    """`path`, if it is a regular file or a link to one; a pipe or a device would be waited for without an end.

    Args:
        content: what the file should hold, with its article, such as "a PNG".

    Raises:
        InputError: it is anything else, is not there, or its folder may not be entered.
    """
    kind = stat.S_IFMT(_state(path, content).st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"expected {content} at {path}, got {_KINDS.get(kind, 'no regular file')}; take it away")
    return path


def _state(path: Path, content: str) -> os.stat_result:
    """The state of what `path` names or links to.

    Raises:
        InputError: there is nothing, the link leads nowhere or to itself, or the system does not say.
    """
    try:
        return path.stat()
    except OSError as error:
        if path.is_symlink():
            raise InputError(
                f"expected {content} at {path}, got a link that leads nowhere ({reason(error)}); "
                "restore what it links to, or delete the link"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise absent(content, path) from error
        raise refused_read(path, content, error) from error


def refused_read(path: Path, content: str, error: OSError) -> InputError:
    """The error for something that the system does not let be read."""
    return InputError(
        f"expected to be able to read {content} at {path}, got '{reason(error)}'; "
        "make it and its folders readable, or leave it out"
    )


def listed(folder: Path) -> list[Path]:
    """Paths of all that is in a folder, sorted by name.

    Raises:
        InputError: there is no such folder, or it may not be read.
    """
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except FileNotFoundError as error:
        raise InputError(f"expected the folder {folder}, got nothing there; restore it, or give another") from error
    except OSError as error:
        raise refused_read(folder, "a folder", error) from error


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder and the links to such, sorted by name; hidden ones are passed over.

    Raises:
        InputError: it may not be read, or a link in it leads nowhere.
    """
    paths = [path for path in listed(folder) if not path.name.startswith(".")]
    return [path for path in paths if stat.S_ISDIR(_state(path, "a file or folder").st_mode)]


def matching(root: Path, pattern: str) -> list[Path]:
    """The paths below `root` that match a pattern such as `patient*/*`, sorted.

    Raises:
        InputError: a folder may not be read, or a link leads nowhere; `Path.glob` would pass over both.
    """
    *folders, name = pattern.split("/")
    parents = [root]
    for part in folders:
        parents = [path for parent in parents for path in subfolders(parent) if fnmatchcase(path.name, part)]
    return [path for parent in parents for path in listed(parent) if fnmatchcase(path.name, name)]


def walk(root: Path) -> tuple[list[Path], list[Path]]:
    """All files below `root`, folder by folder, and the links to folders, which are not followed.

    Hidden files and folders are passed over.

    Raises:
        InputError: a folder may not be read; `os.walk` would pass over it.
    """
    files: list[Path] = []
    links: list[Path] = []
    folders = [root]
    while folders:
        folder, below = folders.pop(), []
        try:
            with os.scandir(folder) as entries:
                named = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        except OSError as error:
            raise refused_read(folder, "a folder", error) from error
        for name, is_folder in named:
            path = folder / name
            if name.startswith("."):
                continue
            if is_folder:
                below.append(path)
            else:
                (links if os.path.isdir(path) else files).append(path)
        folders += reversed(below)
    return files, links


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes `path`'s place when the block ends without an error.

    A killed process leaves at most a `.part` file, which no reader looks at and the next writer of `path` removes.
    The name has a random part, since two processes may write the same file (two shards the header of a run, each
    for itself); whichever is ready first removes the other's, too, and the other takes the file that is there.

    Raises:
        InputError: the system refuses: the disk is full, a folder is a file or may not be written to.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            os.replace(part, path)
            for other in _parts(path):
                other.unlink(missing_ok=True)
        except FileNotFoundError as error:
            if error.filename is None or Path(error.filename) != part or not path.exists():
                raise
        finally:
            with suppress(OSError):
                part.unlink()


def _parts(path: Path) -> list[Path]:
    """The `.part` files of writers of `path` that did not end."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]+\.part")
    return [path.with_name(other) for other in os.listdir(path.parent) if name.fullmatch(other)]


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes sorted, indented JSON; not-a-number raises ValueError, since other readers do not know it."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: the file is absent or is not a JSON object.
    """
    try:
        content = json.loads(require_file(path, "a JSON file").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"expected a JSON file at {path}, got {reason(error)}; restore it, or name another") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(content).__name__}; restore the file")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads YAML that this package wrote.

    Raises:
        InputError: the file is absent, was cut off, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"expected YAML at {path}, got '{' '.join(str(error).split())}'; restore the file, or choose another folder"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"expected fields and values in {path}, got {type(content).__name__}; restore the file, or choose another "
            "folder"
        )
    return content


def digest(content: Any) -> str:
    """A hash of anything JSON can hold, the same on every machine (sha256, 64 hex digits).

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a trained model, whole."""
    return (folder / CARD).is_file()
