"""Folders of a source, listed: what cannot be read is refused, where `Path.glob` and `os.walk` pass over it."""

import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path

from medseg_attack.errors import InputError
from medseg_attack.storage.paths import refused_read, state_of


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
    return [path for path in paths if stat.S_ISDIR(state_of(path, "a file or folder").st_mode)]


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
