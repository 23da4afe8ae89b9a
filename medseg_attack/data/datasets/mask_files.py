"""Which mask files belong to which image, by their names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from medseg_attack.data.cohort.doubles import canonical
from medseg_attack.data.datasets.source import require_folder
from medseg_attack.data.formats.folders import listed, subfolders
from medseg_attack.data.formats.pictures import is_picture
from medseg_attack.errors import InputError

MaskFiles: TypeAlias = dict[str, Path]  # what differs in the names of one image's masks -> file; "" for a single mask


def match_masks(folder: Path, images: Mapping[str, Path]) -> tuple[dict[str, MaskFiles], list[Path]]:
    """The masks of each image by its stem, and those that have no image.

    Raises:
        InputError: the folder is missing, holds files and folders at once, or two files for one thing.
    """
    require_folder(folder, "masks")
    files = [path for path in listed(folder) if is_picture(path)]
    folders = subfolders(folder)
    if files and folders:
        raise InputError(
            f"expected masks or folders of masks in {folder}, got both ({folders[0].name}/); keep one kind"
        )
    by_image: dict[str, MaskFiles] = {}
    lost = []
    per_image = bool(folders) and all(canonical(one.name) in images for one in folders)
    pairs: list[tuple[str | None, Path]] = [(None, path) for path in files]
    pairs += [(canonical(one.name), path) for one in folders for path in listed(one) if is_picture(path)]
    for within, path in pairs:
        stem, name = (within, canonical(path.stem)) if per_image else _split(canonical(path.stem), images)
        if stem is None:
            lost.append(path)
            continue
        name = within if within and not per_image else name
        masks = by_image.setdefault(stem, {})
        other = next((other for key, other in masks.items() if key.casefold() == name.casefold()), None)
        if other is not None:
            raise InputError(f"expected one mask of each name, got {other} and {path}; take one away or rename it")
        masks[name] = path
    return _plain(by_image, numbered=per_image), lost


def _split(stem: str, images: Mapping[str, Path]) -> tuple[str | None, str]:
    """The longest image name that a mask's begins with, up to a separator, and what follows it."""
    if stem in images:
        return stem, ""
    for end in reversed([match.start() for match in re.finditer(r"[_\-. ]", stem)]):
        if stem[:end] in images:
            return stem[:end], stem[end + 1 :]
    return None, ""


def _plain(by_image: dict[str, MaskFiles], *, numbered: bool) -> dict[str, MaskFiles]:
    """Masks that all have one ending, such as `_mask`, are masks without one; objects are numbered."""
    if numbered:
        return {stem: {str(i): path for i, path in enumerate(masks.values())} for stem, masks in by_image.items()}
    endings = {name for masks in by_image.values() for name in masks}
    if len(endings) > 1:
        return by_image
    return {stem: dict.fromkeys([""], path) for stem, masks in by_image.items() for path in masks.values()}
