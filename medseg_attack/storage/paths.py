"""Paths that are what they are named for, and that stay in their folder."""

import os
import stat
from pathlib import Path, PurePosixPath

from medseg_attack.errors import InputError, absent, listed, reason

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


def is_id(name: str) -> bool:
    """Whether a name can be that of a file in any folder.

    >>> is_id("case1_day0"), is_id("../case1"), is_id("a/b"), is_id("..")
    (True, False, False, False)
    """
    return is_below(name) and "/" not in name


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


def require_outside(path: Path, *sources: Path) -> None:
    """Refuses to write into what is read.

    Raises:
        InputError: `path` is one of the folders `sources`, or lies in it.
    """
    for source in sources:
        if real_path(path).is_relative_to(real_path(source)):
            raise InputError(f"expected a folder outside of {source} to write to, got {path}; give another --out")


def prepared_around(path: Path) -> Path | None:
    """The folder of a prepared data set that a path is, or lies in, behind all links; None where there is none."""
    real = real_path(path)
    for each in (real, *real.parents):
        if (each / "dataset.json").is_file() and (each / "options.json").is_file():
            return each
    return None
