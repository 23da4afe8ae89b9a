"""Medical Segmentation Decathlon tasks and nnU-Net raw data sets: NIfTI pairs, perhaps `dataset.json`.

SOURCE/imagesTr/liver_1.nii.gz         channels along the fourth axis; nnU-Net: liver_1_0000.nii.gz, liver_1_0001.nii.gz
SOURCE/labelsTr/liver_1.nii.gz
SOURCE/dataset.json                    "labels": {"1": "liver"}, or {"liver": 1} as nnU-Net v2 writes it;
                                       "modality" or "channel_names": {"0": "T1", "1": "FLAIR"}
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_attack.data.cohort.doubles import unique
from medseg_attack.data.cohort.patients import Named, patients
from medseg_attack.data.datasets.source import ScanFile, Source, require_folder
from medseg_attack.data.formats.folders import listed
from medseg_attack.data.formats.nifti import channels_of, label_values, read_pair, stem
from medseg_attack.errors import InputError, plural
from medseg_attack.files import read_json
from medseg_attack.registry import register, spec
from medseg_attack.types import Task

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@register("decathlon", kind="dataset")
@dataclass(frozen=True)
class Decathlon:
    """Medical Segmentation Decathlon or nnU-Net raw: NIfTI, one class per voxel, one or several channels.

    Images without a mask and masks without an image are left out and named. Each case counts as a patient.
    Without dataset.json the masks are read twice, once to see which labels there are.

    Attributes:
        classes: names of the labels 1, 2, ..., for a data set without dataset.json.
        patient: pattern of the patients' names, or "folder"; see `cohort.patients`.
    """

    classes: tuple[str, ...] = ()
    patient: str = ""

    def listing(self, root: Path) -> Source:
        """The pairs of imagesTr and labelsTr."""
        require_folder(root, "imagesTr/ and labelsTr/")
        masks = _by_stem(root / "labelsTr")
        images = _channels(_by_stem(root / "imagesTr"), masks)
        pairs = {name: (images[name], masks[name]) for name in sorted(images.keys() & masks.keys())}
        if not pairs:
            raise InputError(
                f"expected images and masks of one name in {root}, got no pair; name each mask like its image"
            )
        described = read_json(root / "dataset.json") if os.path.lexists(root / "dataset.json") else {}
        values = self._labels(root, described, [mask for _, mask in pairs.values()])
        n = _count({name: files for name, (files, _) in pairs.items()})
        names = _channel_names(root / "dataset.json", described, n)
        unit = "HU" if names and all(name.upper().startswith("CT") for name in names) else ""
        task = Task(
            str(described.get("name") or root.resolve().name),
            tuple(values),
            exclusive=True,
            channels=n,
            channel_names=names if n > 1 else (),
        )
        named = {name: Named(name, files[0], name) for name, (files, _) in pairs.items()}
        who = patients(named, self.patient, root / "imagesTr", "by their cases: each counts as a patient")
        read = functools.partial(read_pair, values=tuple(values.values()), unit=unit)
        scans = [
            ScanFile(
                name,
                who.groups[name],
                files[0],
                (*files, mask),
                functools.partial(read, name, files, mask, several=n > len(files)),
                len(files),
            )
            for name, (files, mask) in pairs.items()
        ]
        notes = (*_unpaired(images, masks), *who.warnings)
        return Source(root, spec(self), task, tuple(scans), notes, patient_rule=who.rule)

    def _labels(self, root: Path, described: Mapping[str, Any], masks: Sequence[Path]) -> dict[str, int]:
        """Name -> value in the masks, background first."""
        if self.classes:
            return {"background": 0} | {name: i for i, name in enumerate(self.classes, start=1)}
        if "labels" in described:
            return _described_labels(described["labels"], root / "dataset.json")
        values = {float(value) for mask in masks for value in label_values(mask)} - {0.0}
        wrong = [value for value in values if value != int(value) or not 0 < value < 256]
        if wrong or not values:
            raise InputError(
                f"expected labels 1, 2, ... in {root / 'labelsTr'}, "
                f"got {wrong[0] if wrong else 'none'}; write whole numbers from 1 to 255"
            )
        return {"background": 0} | {f"label_{int(value)}": int(value) for value in sorted(values)}


def _by_stem(folder: Path) -> dict[str, Path]:
    require_folder(folder, "NIfTI files")
    return unique(((name, path) for path in listed(folder) if (name := stem(path)) is not None), folder.name)


def _channels(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The files of an image by the name of its mask: nnU-Net numbers its channels `_0000`, `_0001`, ..."""
    channels: dict[str, list[Path]] = {}
    for name, path in sorted(images.items()):
        numbered = None if name in masks else _CHANNEL.fullmatch(name)
        if numbered and numbered[1] not in masks and f"{numbered[1]}_0000" not in images:
            numbered = None  # a number of its own
        of_case = channels.setdefault(numbered[1] if numbered else name, [])
        if numbered and int(numbered[2]) != len(of_case):
            raise InputError(
                f"expected channels to be numbered from 0000 without gaps, got {path} "
                f"{'first' if not of_case else f'after {of_case[-1].name}'}; rename or complete the files"
            )
        of_case.append(path)
    return {name: tuple(paths) for name, paths in channels.items()}


def _count(images: Mapping[str, tuple[Path, ...]]) -> int:
    """How many channels the images have; files that hold several are asked when they are read."""
    first, *others = images
    n = len(images[first])
    for name in others:
        if len(images[name]) != n:
            raise InputError(
                f"expected {plural(n, 'file')} for {name} as for {first}, one per channel, got {len(images[name])} "
                f"({images[name][0].name} ...); complete the case or leave it out"
            )
    return n if n > 1 else channels_of(images[first][0])


def _channel_names(path: Path, described: Mapping[str, Any], n: int) -> tuple[str, ...]:
    """Names from both dialects, "modality" and "channel_names"; () where there are none."""
    names = described.get("channel_names", described.get("modality", {}))
    try:
        ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"expected channels such as {{'0': 'T1'}} in {path}, got {names!r}; correct them") from error
    if ordered and len(ordered) != n:
        raise InputError(
            f"expected {plural(len(ordered), 'channel')} as named in {path} ({', '.join(ordered)}), got {n} in the "
            "images; correct one of them"
        )
    return ordered


def _described_labels(labels: Any, path: Path) -> dict[str, int]:
    """Both dialects, {"1": "liver"} and {"liver": 1}, as name -> value in the order of the values."""
    try:
        by_value = all(str(key).isdecimal() for key in labels)
        pairs = [(int(k), str(v)) if by_value else (int(v), str(k)) for k, v in labels.items()]
        values = {name: value for value, name in sorted(pairs)}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"expected labels such as {{'background': 0, 'liver': 1}} in {path}, got {labels!r}; "
            "regions of several labels are not known so far"
        ) from error
    if not values or min(values.values()) != 0 or len(set(values.values())) != len(pairs):
        raise InputError(f"expected different labels with 0 for background in {path}, got {labels!r}; correct them")
    names = list(values)
    return {"background": 0} | {name: values[name] for name in names[1:]}


def _unpaired(images: Mapping[str, Any], masks: Mapping[str, Path]) -> tuple[str, ...]:
    alone = [(name, "an image but no mask") for name in images.keys() - masks.keys()]
    alone += [(name, "a mask but no image") for name in masks.keys() - images.keys()]
    return tuple(f"{name} is left out: it has {what}" for name, what in sorted(alone))
