"""The reserved words of nnU-Net v2's dataset.json, and of the Medical Segmentation Decathlon's, its predecessor.

Source: documentation/dataset_format.md, region_based_training.md and ignore_label.md of nnU-Net v2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_attack.errors import InputError

BACKGROUND, IGNORE = "background", "ignore"
CT = "ct"  # the one channel name, in any case, that says which intensities these are: Hounsfield units
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")  # those of NIfTI
ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        classes: in the order of a network's channels; the background first, unless there are regions.
        values: those of each class in the label maps.
        regions: whether classes are regions of several values, which may overlap: a sigmoid decides each.
        order: the value that nnU-Net writes where it predicts each region, in the order in which it writes them.
        ignore: the value of voxels without a truth.
    """

    classes: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    regions: bool = False
    order: tuple[int, ...] = ()
    ignore: int | None = None


def labels_of(dataset: Mapping[str, Any], file: Path) -> Labels:
    """The labels of a dataset.json.

    Raises:
        InputError: they are not as the specification has them.
    """
    pairs = _pairs(dataset.get("labels"), file)
    ignore = _ignore(pairs, file)
    named = {name: values for name, values in pairs.items() if name != IGNORE}
    if named.get(BACKGROUND, (0,)) != (0,):
        raise InputError(
            f"expected 0 as the label {BACKGROUND} in {file}, got {_written(named[BACKGROUND])}; rename it or give it 0"
        )
    if any(len(values) > 1 for values in named.values()):
        return _regions(dataset, named, ignore, file)
    values = {name: value for name, (value,) in named.items()}
    if not values or min(values.values()) != 0 or len(set(values.values())) != len(values):
        raise InputError(
            f"expected different labels with 0 for background in {file}, got {dataset['labels']!r}; correct them"
        )
    ordered = sorted(values, key=lambda name: values[name])
    return Labels((BACKGROUND, *ordered[1:]), tuple((values[name],) for name in ordered), ignore=ignore)


def _pairs(labels: Any, file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> values, of both dialects: {"1": "liver"} and {"liver": 1} or {"tumour": [1, 2]}."""
    if not isinstance(labels, Mapping) or not labels:
        raise _wrong(labels, file)
    by_value = all(str(key).isdecimal() and isinstance(name, str) for key, name in labels.items())
    pairs = [(str(name), key) for key, name in labels.items()] if by_value else list(labels.items())
    result: dict[str, tuple[int, ...]] = {}
    for name, written in pairs:
        values = written if isinstance(written, list | tuple) else [written]
        if isinstance(written, bool) or not values or not all(str(value).isdecimal() for value in values):
            raise _wrong(labels, file)
        if name in result:
            raise InputError(f"expected each name once in the labels of {file}, got {name!r} twice; rename one")
        result[name] = tuple(sorted({int(value) for value in values}))
    return result


def _wrong(labels: Any, file: Path) -> InputError:
    return InputError(
        f"expected labels such as {{'background': 0, 'liver': 1}} in {file}, got {labels!r:.200}; correct them"
    )


def _ignore(pairs: Mapping[str, tuple[int, ...]], file: Path) -> int | None:
    if IGNORE not in pairs:
        return None
    others = [value for name, values in pairs.items() if name != IGNORE for value in values]
    if len(pairs[IGNORE]) != 1 or pairs[IGNORE][0] <= max(others, default=0):
        raise InputError(
            f"expected the highest label, and one, as {IGNORE!r} in {file}, got {_written(pairs[IGNORE])}; nnU-Net "
            "reserves that name for voxels without a truth: renumber or rename it"
        )
    return pairs[IGNORE][0]


def _regions(
    dataset: Mapping[str, Any], named: Mapping[str, tuple[int, ...]], ignore: int | None, file: Path
) -> Labels:
    regions = {name: values for name, values in named.items() if values != (0,)}
    order = dataset.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions) or not all(isinstance(n, int) for n in order):
        raise InputError(
            f"regions_class_order: expected one value for each of the {len(regions)} regions in {file}, got {order!r}; "
            "write them in the order in which they are painted over one another"
        )
    if any(0 in values for values in regions.values()):
        raise InputError(f"expected regions without the background's 0 in {file}, got {regions!r}; take it out")
    return Labels(tuple(regions), tuple(regions.values()), True, tuple(order), ignore)


def _written(values: Sequence[int]) -> str:
    return str(values[0] if len(values) == 1 else list(values))


def channel_names_of(dataset: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Names from both dialects, "modality" and "channel_names"; () where there are none.

    Raises:
        InputError: they are not numbered from 0.
    """
    names = dataset.get("channel_names", dataset.get("modality", {}))
    try:
        ordered = tuple(str(names[key]) for key in sorted(names, key=int))
        numbered = [int(key) for key in sorted(names, key=int)] == list(range(len(names)))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"expected channels such as {{'0': 'T1'}} in {file}, got {names!r:.200}; correct them"
        ) from error
    if not numbered:
        raise InputError(f"expected channels numbered from 0 in {file}, got {names!r:.200}; renumber them")
    return ordered


def require_nifti(dataset: Mapping[str, Any], file: Path) -> str:
    """The ending of the files that dataset.json speaks of; "" where it names none.

    Raises:
        InputError: it is not that of NIfTI, its reader is another one, or files are listed one by one.
    """
    ending = dataset.get("file_ending", "")
    if ending and ending not in ENDINGS:
        todo = (
            "put pictures into images/ and masks/ and give --format folder"
            if ending in (".png", ".bmp", ".tif", ".tiff")
            else "convert the files, for instance with SimpleITK, and write that ending"
        )
        raise InputError(f"file_ending: expected .nii.gz or .nii in {file}, got {ending!r:.40}; {todo}")
    reader = dataset.get("overwrite_image_reader_writer", "")
    if reader and reader not in READERS:
        raise InputError(
            f"overwrite_image_reader_writer: expected {', '.join(READERS)} in {file}, got {reader!r:.60}; write NIfTI"
        )
    if "dataset" in dataset:
        raise InputError(
            f"dataset: expected imagesTr/ and labelsTr/ beside {file}, got a list of files in it; link them into these "
            "folders and remove the list"
        )
    return str(ending)
