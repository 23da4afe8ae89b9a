"""Medical Segmentation Decathlon tasks and nnU-Net raw data sets: NIfTI pairs, perhaps `dataset.json`.

SOURCE/imagesTr/liver_1.nii.gz         or liver_1_0000.nii.gz, as nnU-Net numbers the channels
SOURCE/labelsTr/liver_1.nii.gz
SOURCE/dataset.json                    "labels": {"1": "liver"}, or {"liver": 1} as nnU-Net v2 writes it
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_attack.data.nifti import label_values, read_pair, stem
from medseg_attack.data.source import ScanFile, Source, existing
from medseg_attack.errors import InputError
from medseg_attack.files import read_json
from medseg_attack.registry import register, spec
from medseg_attack.types import Task

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_DO_ONE = "write one channel to a data set of its own"


@register("decathlon", kind="dataset")
@dataclass(frozen=True)
class Decathlon:
    """Medical Segmentation Decathlon or nnU-Net raw: NIfTI, one class per voxel, one channel so far.

    Images without a mask and masks without an image are left out and named. Each case counts as a patient.
    Without dataset.json the masks are read twice, once to see which labels there are.

    Attributes:
        classes: names of the labels 1, 2, ..., for a data set without dataset.json.
    """

    classes: tuple[str, ...] = ()

    def listing(self, root: Path) -> Source:
        """The pairs of imagesTr and labelsTr."""
        existing(root, "imagesTr/ and labelsTr/")
        masks = _by_stem(root / "labelsTr")
        images = _one_channel(_by_stem(root / "imagesTr"), masks)
        pairs = {name: (images[name], masks[name]) for name in sorted(images.keys() & masks.keys())}
        if not pairs:
            raise InputError(f"expected images and masks of one name in {root}, got no pair; check the names")
        described = read_json(root / "dataset.json") if (root / "dataset.json").exists() else {}
        values = self._labels(root, described, [mask for _, mask in pairs.values()])
        unit = "HU" if _modality(root, described).upper().startswith("CT") else ""
        task = Task(str(described.get("name") or root.resolve().name), tuple(values), exclusive=True)
        scans = [
            ScanFile(
                name, name, image, (image, mask),
                functools.partial(read_pair, name, image, mask, tuple(values.values()), unit=unit),
            )
            for name, (image, mask) in pairs.items()
        ]  # fmt: skip
        return Source(root, spec(self), task, tuple(scans), _unpaired(images, masks))

    def _labels(self, root: Path, described: Mapping[str, Any], masks: Sequence[Path]) -> dict[str, int]:
        """Name -> value in the masks, background first."""
        if self.classes:
            return {"background": 0} | {name: i for i, name in enumerate(self.classes, start=1)}
        if "labels" in described:
            return _described_labels(described["labels"], root / "dataset.json")
        found = {float(value) for mask in masks for value in label_values(mask)} - {0.0}
        wrong = [value for value in found if value != int(value) or not 0 < value < 256]
        if wrong or not found:
            raise InputError(
                f"expected labels 1, 2, ... in {root / 'labelsTr'}, "
                f"got {wrong[0] if wrong else 'none'}; check the masks"
            )
        return {"background": 0} | {f"label_{int(value)}": int(value) for value in sorted(found)}


def _by_stem(folder: Path) -> dict[str, Path]:
    existing(folder, "NIfTI files")
    return {name: path for path in sorted(folder.iterdir()) if (name := stem(path)) is not None}


def _one_channel(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Images by the name of their mask: nnU-Net's `_0000` is taken off."""
    result: dict[str, Path] = {}
    for name, path in images.items():
        numbered = None if name in masks else _CHANNEL.fullmatch(name)
        if numbered and numbered[2] != "0000" and (numbered[1] in masks or f"{numbered[1]}_0000" in images):
            raise InputError(f"expected one channel so far, got a second one in {path}; {_DO_ONE}")
        result[numbered[1] if numbered and numbered[2] == "0000" else name] = path
    return result


def _modality(root: Path, described: Mapping[str, Any]) -> str:
    channels = described.get("channel_names", described.get("modality", {}))
    if not isinstance(channels, dict) or len(channels) > 1:
        raise InputError(f"expected one channel so far, got {channels!r} in {root / 'dataset.json'}; {_DO_ONE}")
    return str(next(iter(channels.values()), ""))


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


def _unpaired(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[str, ...]:
    alone = [(name, "an image but no mask") for name in images.keys() - masks.keys()]
    alone += [(name, "a mask but no image") for name in masks.keys() - images.keys()]
    return tuple(f"{name} is left out: it has {what}" for name, what in sorted(alone))
