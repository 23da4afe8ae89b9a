"""Files that are regular where they are read, and either whole or absent where they are written."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeAlias, TypeGuard

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from medseg_attack.errors import FULL, InputError, absent, listed, reason, refusing

CARD = "card.json"  # written last into the folder of a checkpoint
ENDS = 4096  # bytes at either end of a file
MOST_DIGITS = 300  # of a whole number in JSON; beyond it no float holds the number
PIPED = 2**20  # characters that a pipe may bring

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
    kind = stat.S_IFMT(state_of(path, content).st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"expected {content} at {path}, got {_KINDS.get(kind, 'no regular file')}; name a file")
    return path


def beside(path: Path) -> str:
    """Names in the folder of a file that is not there, in words: at most three, those that are alike first.

    >>> beside(Path("/nowhere/net.pth"))
    'there is no folder /nowhere'
    """
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
    names.sort(key=lambda name: (Path(name).suffix != path.suffix, name))
    return f"{path.parent} holds {listed(names) or 'nothing'}"


def odd_kind(path: Path) -> str:
    """The kind of thing, with its article, that is at a path in place of a file; "" for a file, or a link to one."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        return f"a link that leads nowhere ({reason(error)})" if path.is_symlink() else reason(error)
    return "" if kind == stat.S_IFREG else _KINDS.get(kind, "no regular file")


def state_of(path: Path, content: str) -> os.stat_result:
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


def real_path(path: Path) -> Path:
    """The absolute path behind all links; of a link to itself its own, on which `Path.resolve` raises in Python 3.12.

    >>> real_path(Path("/a/../b")).as_posix()
    '/b'
    """
    return Path(os.path.realpath(path))


def is_below(name: str) -> bool:
    """Whether a path that a file names is relative and goes up nowhere.

    >>> is_below("p1/scan.nii"), is_below("../scan.nii"), is_below("/etc/passwd"), is_below("")
    (True, False, False, False)
    """
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def inside(folder: Path, name: str) -> Path:
    """The path `name` below `folder`: what everything that is written below a folder is asked for by.

    Raises:
        InputError: it leads out of the folder, by its own words or through a link.
    """
    root = real_path(folder)
    if not is_below(name) or root not in real_path(folder / name).parents:
        raise InputError(
            f"expected a path inside of {folder}, got {name!r}, which leads out of it; delete what names or links it so"
        )
    return folder / name


def require_outside(path: Path, source: Path) -> None:
    """Refuses to write into a source.

    Raises:
        InputError: `path` lies in the folder `source`.
    """
    if real_path(path).is_relative_to(real_path(source)):
        raise InputError(f"expected a folder outside of {source} to write to, got {path}; give another --out")


def claim_json(path: Path, content: dict[str, Any]) -> bool:
    """Writes JSON if there is no file yet; False if there is. Of processes that do so at once, one gets True."""
    part = _part_of(path)
    with writing(path), folder_of(path):
        try:
            _write(part, _json_text(content))
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            if path.exists():
                return False
            os.replace(part, path)  # a disk without hard links
        finally:
            with suppress(OSError):
                part.unlink()
    return True


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


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _synchronise(path)


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes sorted, indented JSON; not-a-number raises ValueError, since other readers do not know it."""
    with whole(path) as part:
        part.write_text(_json_text(content), encoding="utf-8")


def _json_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


MOST = 10**15  # a larger count, size or time is none that somebody took
Count: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Form(BaseModel):
    """Fields of a JSON or YAML file with their types; further fields may stand in the file."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class TaskForm(Form):
    """A task as a card or a prepared data set holds it."""

    name: str
    classes: list[str] = Field(min_length=1)
    exclusive: bool
    channels: int = Field(1, ge=1, le=10_000)
    channel_names: list[str] = Field(default_factory=list)


def load_json(path: Path) -> Any:
    """Reads JSON of any kind.

    Raises:
        InputError: the file is absent, is not JSON, or a number of it is of the wrong kind.
    """
    kinds = (OSError, ValueError, RecursionError)  # also of numbers with thousands of digits
    with refusing(f"a JSON file at {path}", "restore it, or name another", kinds):
        text = require_file(path, "a JSON file").read_text(encoding="utf-8-sig")
        return json.loads(
            text, parse_float=_finite, parse_int=_integer, parse_constant=_finite, object_pairs_hook=_distinct
        )


def read_json(path: Path, form: type[BaseModel] | None = None) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        form: the fields that it must have, with their types.

    Raises:
        InputError: the file is absent, is not a JSON object, or a field or number of it is of the wrong kind.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(content).__name__}; restore the file")
    return content if form is None else check_form(content, form, path)


def require_same_options(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to go on in a folder that was begun with other options or inputs.

    Args:
        stored: those that it was begun with.
        current: those of this call.

    Raises:
        InputError: they differ; the sentence names what differs, and nothing else.
    """
    if differing := differences(stored, current):
        raise InputError(
            f"expected the options and inputs that {folder} was begun with, got others ({'; '.join(differing)}); "
            "give another --out, or those of the folder to go on"
        )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The fields in which two JSON objects differ, at any depth, each with both values.

    >>> differences({"rho": 0.1, "poison": {"spec": "stamp"}}, {"rho": 0.1, "poison": {"spec": "iba"}})
    ['poison.spec: there stamp, here iba']
    >>> differences({"attacks": ["clean", "fgsm"]}, {"attacks": ["clean", "pgd"], "seed": 3})
    ['attacks: only there fgsm, only here pgd', 'seed: there none, here 3']
    """
    result = []
    for field in sorted({*stored, *current}):
        old, new = stored.get(field), current.get(field)
        if old == new:
            continue
        if (old or new) and all(value is None or isinstance(value, Mapping) for value in (old, new)):
            result += [f"{field}.{inner}" for inner in differences(old or {}, new or {})]
        elif _are_texts(old) and _are_texts(new) and {*old} ^ {*new}:
            parts = [("there", [each for each in old if each not in new]), ("here", [n for n in new if n not in old])]
            only = [f"only {place} {', '.join(map(_shown, items))}" for place, items in parts if items]
            result.append(f"{field}: {', '.join(only)}")
        else:
            result.append(f"{field}: there {_shown(old)}, here {_shown(new)}")
    return result


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(value: Any) -> str:
    """A value of a JSON object in a sentence: 12 characters of a hash, at most 120 of anything else."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text if len(text) <= 120 else f"{text[:117]}..."


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]}, which is not finite")
    return number


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; Python's own would keep the last of two values of one key without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r} twice in one object")
    return content


def check_form(content: dict[str, Any], form: type[BaseModel], path: Path) -> dict[str, Any]:
    """The content of a file, if its fields are those of a form.

    Raises:
        InputError: a field is absent, or not of its type.
    """
    try:
        form.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        got = "none" if first["type"] == "missing" else f"{first['input']!r:.60}"
        raise InputError(
            f"expected the field {field!r} in {path} as medattack writes it ({first['msg'].lower()}), got {got}; "
            "restore the file, or name another folder"
        ) from error
    return content


def read_yaml(path: Path, form: type[BaseModel] | None = None, *, may_be_pipe: bool = False) -> dict[str, Any]:
    """Reads fields in YAML, without tags and aliases; an empty file has none.

    Args:
        form: the fields that it must have, with their types.
        may_be_pipe: whether a person named the path, who may have meant a pipe, as in `--config <(...)`.

    Raises:
        InputError: the file is absent, was cut off, or holds something else.
    """
    kinds = (OSError, ValueError, RecursionError, yaml.YAMLError)  # also of numbers with thousands of digits
    with refusing(f"a study in YAML at {path}", "correct it there, or name another file", kinds):
        if may_be_pipe and path.is_fifo():
            text = _piped(path)
        else:
            text = require_file(path, "a YAML file").read_text(encoding="utf-8-sig")
        content = yaml.load(text, Loader=_PlainLoader)
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(field, str) for field in content):
        raise InputError(
            f"expected fields such as 'models: [unet]' in {path}, got {type(content).__name__}; write fields"
        )
    return content if form is None else check_form(content, form, path)


def _piped(path: Path) -> str:
    """The text of a pipe; of one that nobody writes to, at once an error."""
    with open(path, encoding="utf-8-sig", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as pipe:
        os.set_blocking(pipe.fileno(), True)  # a writer that there is may take its time
        text = pipe.read(PIPED + 1)
    if not text:
        raise ValueError("a pipe that nobody writes to")
    if len(text) > PIPED:
        raise ValueError(f"more than {PIPED} characters from a pipe")
    return text


class _PlainLoader(yaml.SafeLoader):
    """A loader without aliases, of which a short text makes a list with billions of entries."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"the alias *{event.anchor}, where the value itself must stand")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            key, _ = Counter(key.value for key, _ in node.value).most_common(1)[0]
            raise yaml.YAMLError(f"the field {key!r} twice")
        return content


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


def digest(content: Any) -> str:
    """A hash of anything JSON can hold, the same on every machine (sha256, 64 hex digits).

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with require_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a trained model, whole."""
    return (folder / CARD).is_file()
