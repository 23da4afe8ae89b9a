"""Medical Segmentation Decathlon tasks and nnU-Net raw data sets: NIfTI pairs, perhaps `dataset.json`.

SOURCE/imagesTr/liver_1.nii.gz         channels along the fourth axis; nnU-Net: liver_1_0000.nii.gz, liver_1_0001.nii.gz
SOURCE/labelsTr/liver_1.nii.gz
SOURCE/imagesTs/, SOURCE/labelsTs/     the test split, where --split-by folder asks for it
SOURCE/dataset.json                    "labels": {"1": "liver"}, or {"liver": 1} as nnU-Net v2 writes it;
                                       "modality" or "channel_names": {"0": "T1", "1": "FLAIR"}
"""

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from medseg_attack.data.cohort.doubles import unique
from medseg_attack.data.cohort.notes import left_out
from medseg_attack.data.cohort.patients import Named, patients
from medseg_attack.data.datasets.source import FOLDER, Source, require_folder, require_split
from medseg_attack.data.datasets.volumes import Pairs, Survey, require_plane, scan_files, survey
from medseg_attack.data.formats.folders import listed
from medseg_attack.data.formats.label_values import LabelValues
from medseg_attack.data.formats.leaving_out import is_left_out, offering, refuse_unknown
from medseg_attack.data.formats.nifti import label_values, read_pair, stem, suffix_of
from medseg_attack.errors import InputError, plural
from medseg_attack.escaping import shell
from medseg_attack.registry import register, spec
from medseg_attack.specifications.nnunet import CT, channel_names_of, labels_of, require_nifti
from medseg_attack.storage.json_files import read_json
from medseg_attack.storage.paths import real_path
from medseg_attack.types import Task

_CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)  # a name may hold any character


@register("decathlon", kind="dataset")
@dataclass(frozen=True)
class Decathlon:
    """Medical Segmentation Decathlon or nnU-Net raw: NIfTI, one or several channels, one class per voxel or regions.

    Images without a mask and masks without an image are left out and named. Each case counts as a patient.
    Without dataset.json the masks are read twice, once to see which labels there are.

    Attributes:
        classes: names of the labels 1, 2, ..., for a data set without dataset.json.
        patient: pattern of the patients' names, or "folder"; see `cohort.patients`.
        plane: that of the slices, axial, coronal, sagittal, or acquired for each scan's own; "": that of most scans.
        split_by: "folder": imagesTs and labelsTs are the test split; "": they are left out.
    """

    classes: tuple[str, ...] = ()
    patient: str = ""
    plane: str = ""
    split_by: str = ""

    def __post_init__(self) -> None:
        require_plane(self.plane)
        require_split(self.split_by)

    def listing(self, root: Path) -> Source:
        """The pairs of imagesTr and labelsTr."""
        require_folder(root, "imagesTr/ and labelsTr/")
        file = root / "dataset.json"
        described = read_json(file) if os.path.lexists(file) else {}
        ending = require_nifti(described, file)
        pairs, notes = _pairs(root, "Tr", ending)
        tests, test_notes = _pairs(root, "Ts", ending) if self.split_by == FOLDER else ({}, _unused(root))
        refuse_unknown()
        both: dict[str, tuple[tuple[Path, ...], Path]] = unique([*pairs.items(), *tests.items()], "case")
        both = dict(sorted(both.items()))
        values, classes = self._labels(root, described, {name: mask for name, (_, mask) in both.items()})
        volumes = survey(both, self.plane)
        n = _count(both, volumes)
        names = _channel_names(file, described, n)
        unit = "HU" if names and all(name.casefold() == CT for name in names) else ""
        task = Task(
            str(described.get("name") or real_path(root).name),
            classes,
            exclusive=values.exclusive,
            channels=n,
            channel_names=names if n > 1 else (),
        )
        named = {name: Named(name, files[0], name) for name, (files, _) in both.items()}
        base = root if tests else root / "imagesTr"
        who = patients(named, self.patient, base, "by their cases: each counts as a patient")
        several = n > len(next(iter(both.values()))[0])  # all have as many files
        read = functools.partial(read_pair, values=values, unit=unit, plane=volumes.scan_plane, several=several)
        parts = {name: "test" if name in tests else "train" if tests else "" for name in both}
        scans = scan_files(both, who.groups, parts, read)
        all_notes = (*notes, *test_notes, *_counted(described, len(pairs), file), *who.warnings, *volumes.notes)
        return Source(root, spec(self), task, scans, all_notes, plane=volumes.plane, patient_rule=who.rule)

    def _labels(
        self, root: Path, described: Mapping[str, Any], masks: Mapping[str, Path]
    ) -> tuple[LabelValues, tuple[str, ...]]:
        """The values of the masks, and the classes that they are."""
        if self.classes:
            if "labels" in described:
                raise InputError(
                    f"classes: expected them for a data set without labels in {root / 'dataset.json'}, got both; "
                    "drop classes"
                )
            return LabelValues.single(*range(len(self.classes) + 1)), ("background", *self.classes)
        if "labels" in described:
            labels = labels_of(described, root / "dataset.json")
            return LabelValues(labels.values, not labels.regions, labels.ignore), labels.classes
        values = {0.0}
        for name, mask in masks.items():
            with offering(name):
                values |= {float(value) for value in label_values(mask)}
        values -= {0.0}
        wrong = [value for value in values if value != int(value) or not 0 < value < 256]
        if wrong or not values:
            raise InputError(
                f"expected labels 1, 2, ... in {root / 'labelsTr'}, "
                f"got {f'{wrong[0]:g}' if wrong else 'none'}; write whole numbers from 1 to 255"
            )
        ordered = [int(value) for value in sorted(values)]
        return LabelValues.single(0, *ordered), ("background", *(f"label_{value}" for value in ordered))


def _pairs(root: Path, suffix: str, ending: str) -> tuple[Pairs, tuple[str, ...]]:
    """The cases of imagesTr and labelsTr, or of imagesTs and labelsTs, and notes on what is left out."""
    masks = _by_stem(root / f"labels{suffix}", ending)
    images = _channels(_by_stem(root / f"images{suffix}", ending), masks)
    pairs = {name: (images[name], masks[name]) for name in sorted(images.keys() & masks.keys())}
    if not pairs:
        raise InputError(
            f"expected images and masks of one name in {root / f'images{suffix}'} and {root / f'labels{suffix}'}, got "
            f"no pair{f' ending in {ending}' if ending else ''}; name each mask like its image"
        )
    return pairs, _unpaired(images, masks)


def _unused(root: Path) -> tuple[str, ...]:
    """Notes on files that hold a split of the data set's own."""
    notes = []
    if (root / "labelsTs").is_dir():
        notes.append("labelsTs is left out: --split-by folder takes imagesTs and labelsTs as the test split")
    if (root / "splits_final.json").is_file():
        file = shell(str(root / "splits_final.json"))
        notes.append(f"splits_final.json is not used: --split-by {file} takes its folds")
    return tuple(notes)


def _counted(described: Mapping[str, Any], n: int, file: Path) -> tuple[str, ...]:
    """A note where dataset.json counts or lists other cases than there are."""
    listed_cases = described.get("training")
    n_training = described.get("numTraining", len(listed_cases) if isinstance(listed_cases, list) else n)
    return () if n_training == n else (f"{file.name} speaks of {n_training} cases for training, and there are {n}",)


def _by_stem(folder: Path, ending: str) -> dict[str, Path]:
    """The NIfTI files of a folder by their names, those of one ending if dataset.json names it."""
    require_folder(folder, "NIfTI files")
    files = [(name, path) for path in listed(folder) if (name := stem(path)) is not None]
    if not files:
        got = ", ".join(path.name for path in listed(folder)[:3])
        raise InputError(f"expected NIfTI files (.nii.gz or .nii) in {folder}, got {got}; convert them")
    chosen = ((name, path) for name, path in files if not ending or suffix_of(path.name).lower() == ending)
    return unique(chosen, "file")


def _channels(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The files of an image by the name of its mask: nnU-Net numbers its channels `_0000`, `_0001`, ..."""
    channels: dict[str, list[Path]] = {}
    for name, path in sorted(images.items()):
        numbered = None if name in masks else _CHANNEL.fullmatch(name)
        if numbered and numbered[1] not in masks and f"{numbered[1]}_0000" not in images:
            numbered = None  # a number of its own
        case = numbered[1] if numbered else name
        if is_left_out(case):
            continue
        of_case = channels.setdefault(case, [])
        if numbered and int(numbered[2]) != len(of_case):
            with offering(case):
                raise InputError(
                    f"expected channels to be numbered from 0000 without gaps, got {path} "
                    f"{'first' if not of_case else f'after {of_case[-1].name}'}; rename or complete the files"
                )
        of_case.append(path)
    return {name: tuple(paths) for name, paths in channels.items()}


def _count(pairs: Pairs, volumes: Survey) -> int:
    """How many channels the images have; files that hold several are asked when they are read."""
    (first, (files, _)), *others = pairs.items()
    n = len(files)
    for name, (paths, _) in others:
        if len(paths) != n:
            with offering(name):
                raise InputError(
                    f"expected {plural(n, 'file')} for {name} as for {first}, one per channel, got {len(paths)} "
                    f"({paths[0].name} ...); complete the case or leave it out"
                )
    return n if n > 1 else volumes.channels[first]


def _channel_names(file: Path, described: Mapping[str, Any], n: int) -> tuple[str, ...]:
    """Names of the channels; () where there are none."""
    names = channel_names_of(described, file)
    if names and len(names) != n:
        raise InputError(
            f"expected {plural(len(names), 'channel')} as named in {file} ({', '.join(names)}), got {n} in the images; "
            "correct one of them"
        )
    return names


def _unpaired(images: Mapping[str, tuple[Path, ...]], masks: Mapping[str, Path]) -> tuple[str, ...]:
    alone = [(name, images[name][0], "it has an image but no mask") for name in images.keys() - masks.keys()]
    lost = [name for name in masks.keys() - images.keys() if not is_left_out(name)]
    alone += [(name, masks[name], "it has a mask but no image") for name in lost]
    return tuple(starmap(left_out, sorted(alone)))
