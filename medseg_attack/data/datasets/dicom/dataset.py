"""DICOM series with their labels, anywhere in a folder: `prepare SOURCE --format dicom`."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from medseg_attack.data.cohort.missing import Lacking, labels_in, require_rule, without
from medseg_attack.data.cohort.patients import Named, Patients, one_for_many, patients, spelt_alike
from medseg_attack.data.datasets.dicom.labels import ClassLabels, Label, place_of
from medseg_attack.data.datasets.dicom.remarks import contour_remarks, coverage_remarks, inversion_remark, label_remarks
from medseg_attack.data.datasets.label_names import LabelPattern, match, matching, parse
from medseg_attack.data.datasets.source import ScanFile, Source, label_type, require_folder
from medseg_attack.data.formats.dicom.alignment import NIFTI, read_label_map, values_of
from medseg_attack.data.formats.dicom.index import Index, UncheckedSeries, index
from medseg_attack.data.formats.dicom.label_files import LabelFile
from medseg_attack.data.formats.dicom.ownership import left_out, no_labels, series_of_label
from medseg_attack.data.formats.dicom.rtstruct import read_rtstruct
from medseg_attack.data.formats.dicom.seg import read_seg
from medseg_attack.data.formats.dicom.series import Series, files_of, read_stored, series_of
from medseg_attack.data.formats.folders import walk
from medseg_attack.data.formats.leaving_out import is_left_out, offering
from medseg_attack.data.formats.nifti import stem
from medseg_attack.data.formats.scan import Array, Scan
from medseg_attack.errors import InputError, plural
from medseg_attack.registry import register, spec
from medseg_attack.types import Task

_CHOOSE = "choose among them with --labels CLASS=NAME, or name the other series, one by one, with --series"


@register("dicom", kind="dataset")
@dataclass(frozen=True)
class Dicom:
    """DICOM series (CT, MR, enhanced multi-frame) with SEG, RTSTRUCT or NIfTI labels.

    All of SOURCE is searched; files are known by their headers, not by their names or folders. A series that has
    labels is a scan, others are left out and named. A SEG or RTSTRUCT belongs to the series that it refers to. Where
    an RTSTRUCT's references lead nowhere, or a SEG has none, it belongs to the series in its frame of reference, or
    else to the series of its patient. A NIfTI label map must be named by `masks`; it belongs to the series whose voxels
    its affine hits, in whatever order of axes, and if only in part. Patients are told apart by PatientID (by study
    where it is empty) and called by a hash. Where SeriesInstanceUID is empty, a folder is a series.

    Attributes:
        labels: classes and the labels they are made of, `liver=Liver,kidney=Kidney*`; all labels where it is empty.
        series: SeriesInstanceUIDs to take; all that have labels where it is empty.
        masks: pattern of the paths of label files, such as `*/reader1/*.dcm` or `*_seg.nii.gz`.
        threshold: of FRACTIONAL segments, in (0, 1].
        off_mm: how far from its slice a contour of an RTSTRUCT may lie; a tenth of the distance of slices at least, and
            half of it at most.
        exclusive: one class per voxel, for a softmax network; labels that overlap are then refused.
        patient: where ids were wiped, `folder` to tell patients apart by the folders of SOURCE, or a pattern of the
            paths of their series; see `cohort.patients`. Either is called by a hash.
        missing: what is done about a series without one of the labels: "absent" (the organ is not in it), "drop" (it
            is left out) or "refuse". "": absent if `labels` chooses them, else refused.

    Raises:
        InputError: a field is out of range, or `labels` is no list of classes and labels.
    """

    labels: str = ""
    series: tuple[str, ...] = ()
    masks: str = ""
    threshold: float = 0.5
    off_mm: float = 0.0
    exclusive: bool = False
    patient: str = ""
    missing: str = ""

    def __post_init__(self) -> None:
        if self.missing:
            require_rule(self.missing)
        parse(self.labels)
        if not 0 < self.threshold <= 1:
            raise InputError(f"dicom.threshold: expected a fraction in (0, 1], got {self.threshold}; 0.5 is usual")
        if not 0 <= self.off_mm < np.inf:
            raise InputError(f"dicom.off_mm: expected a length in mm, got {self.off_mm}; 0.5 is usual")

    def listing(self, root: Path) -> Source:
        """The series that have labels.

        Raises:
            InputError: there is none, or one of them or its labels cannot be used.
        """
        require_folder(root, "DICOM series and their labels")
        objects = self._chosen(index(root), root)
        owned, notes = self._owned(objects, root)
        if not owned:
            raise InputError(no_labels(objects, root))
        notes += [
            f"{place_of(one, root)} is left out: {one.modality} of {plural(len(one.frames), 'image')} without labels"
            for uid, one in objects.images.items()
            if uid not in owned and not is_left_out(uid)
        ]
        all_series = {}
        for uid in owned:
            with offering(uid):
                all_series[uid] = series_of(objects.images[uid])
        notes += [inversion_remark(one, root) for one in all_series.values() if one.pixels.photometric == "MONOCHROME1"]
        notes += [f"{place_of(one.images, root)}: {remark}" for one in all_series.values() for remark in one.remarks]
        labels_of = self._labels_of_series(owned, objects, root, notes)
        if not labels_of:
            raise InputError(
                f"--missing drop: expected a series of {root} with all labels, got none; give --missing absent, or "
                "choose fewer with --labels"
            )
        for uid, by_class in labels_of.items():
            series = all_series[uid]
            with offering(uid):
                notes += [
                    *contour_remarks(by_class, series, self.off_mm),
                    *coverage_remarks(by_class, series),
                    *label_remarks(by_class, series, root),
                ]
        names = tuple(next(iter(labels_of.values())))
        classes = ("background", *names) if self.exclusive else names
        task = Task("dicom", classes, self.exclusive)
        who = self._patients(objects, owned, root)
        groups = who.groups
        notes += [*who.warnings, *_one_for_many(self.patient, [objects.images[uid] for uid in owned], root)]
        scans = []
        for uid, by_class in labels_of.items():
            series = all_series[uid]
            name = f"{groups[uid]}_{_hash(uid)}"
            images = tuple(files_of(series))
            files = (*images, *sorted({label.file.path for labels in by_class.values() for label in labels}))
            read = functools.partial(read_scan, name, series, by_class, task, self, root)
            scans.append(ScanFile(name, groups[uid], series.frames[0].path.parent, files, read, len(images)))
        all_notes = (*objects.notes, *dict.fromkeys(notes))  # a label may be in several classes
        threshold = 0.0 if self.threshold == type(self).threshold else self.threshold
        ordered = tuple(sorted(scans, key=lambda scan: scan.id))
        return Source(root, spec(self), task, ordered, all_notes, threshold=threshold, patient_rule=who.rule)

    def _chosen(self, objects: Index, root: Path) -> Index:
        """The objects that `series` and `masks` leave, with the NIfTI label maps that `masks` names."""
        missing = [uid for uid in self.series if uid not in objects.images]
        if missing:
            available = ", ".join(f"{uid} ({place_of(one, root)})" for uid, one in objects.images.items())
            raise InputError(
                f"expected the series {missing[0]} in {root}, got {available or 'none'}; choose among them"
            )
        images = {uid: one for uid, one in objects.images.items() if not self.series or uid in self.series}
        if not self.masks:
            return replace(objects, images=images)
        labels = [label for label in objects.labels if _is_named(label.path.relative_to(root), self.masks)]
        labels += [
            LabelFile(path, NIFTI, "", "", frozenset(), frozenset(), values_of(path))
            for path in walk(root)[0]
            if stem(path) and _is_named(path.relative_to(root), self.masks)
        ]
        return replace(objects, images=images, labels=tuple(labels))

    def _owned(self, objects: Index, root: Path) -> tuple[dict[str, list[LabelFile]], list[str]]:
        """Series UID -> its label files; and notes on files that belong to none."""
        owned: dict[str, list[LabelFile]] = defaultdict(list)
        notes = []
        for label in objects.labels:
            owners = series_of_label(label, objects.images)
            if len(owners) > 1:
                raise InputError(
                    f"expected one series that {label.path} belongs to, got {', '.join(owners)}; choose with --series"
                )
            for uid in owners:
                if is_left_out(uid):
                    continue
                if label.refusal:
                    with offering(label.path.relative_to(root).as_posix()):
                        raise InputError(f"{label.refusal} in {label.path}; write it again, or leave it out")
                owned[uid].append(label)
            if not owners and not self.series:
                notes.append(left_out(label, root))
        return dict(sorted(owned.items())), notes

    def _labels_of_series(
        self, owned: Mapping[str, Sequence[LabelFile]], objects: Index, root: Path, notes: list[str]
    ) -> dict[str, ClassLabels]:
        """Series UID -> class -> its labels; adds notes on what series lack."""
        pools = {
            uid: [
                Label(file, number, name) for file in files for number, name in file.names_in(objects.images[uid].place)
            ]
            for uid, files in owned.items()
        }
        names = {uid: tuple(dict.fromkeys(label.name for label in pool)) for uid, pool in pools.items()}
        drawn = {
            uid: {label.name for label in pool if label.number not in label.file.empty} for uid, pool in pools.items()
        }
        chosen, lacking = self._chosen_labels(owned, names, drawn, objects, root)
        notes += lacking.notes
        labels: dict[str, ClassLabels] = {}
        for uid in owned:
            if uid not in lacking.dropped:
                place = f"the series {uid} in {place_of(objects.images[uid], root)}"
                with offering(uid):
                    labels[uid] = {cls: _labels(pools[uid], hits, place) for cls, hits in chosen[uid].items()}
        return labels

    def _chosen_labels(
        self,
        owned: Mapping[str, Sequence[LabelFile]],
        names: Mapping[str, tuple[str, ...]],
        drawn: Mapping[str, Set[str]],
        objects: Index,
        root: Path,
    ) -> tuple[dict[str, dict[str, tuple[str, ...]]], Lacking]:
        """Series UID -> class -> names of its labels, and what is done about series that lack some.

        Args:
            drawn: series UID -> names of the labels that have a frame or a contour.
        """
        every = tuple(dict.fromkeys(name for own in names.values() for name in own))
        class_patterns = parse(self.labels) or {name: (LabelPattern(name, literal=True),) for name in every}
        files = [str(file.path) for files in owned.values() for file in files]
        match(class_patterns, every, ", ".join(files[:3]) + (", ..." if len(files) > 3 else ""), _CHOOSE)
        chosen = {uid: matching(class_patterns, own) for uid, own in names.items()}
        rule = self.missing or "absent"
        # a label that nobody drew is an absent organ without further words, and lacks where its series must not
        missing = {
            uid: [
                cls for cls, hits in by_class.items() if not hits or (rule != "absent" and drawn[uid].isdisjoint(hits))
            ]
            for uid, by_class in chosen.items()
        }
        places = _places([objects.images[uid] for uid in owned], root)
        if not class_patterns or (not self.labels and not self.missing and any(missing.values())):
            usual = min(missing, key=lambda uid: len(missing[uid]))
            other = next((uid for uid in names if set(names[uid]) != set(names[usual])), usual)
            labels = " and ".join(f"{', '.join(names[uid]) or 'none'} in {places[uid]}" for uid in (usual, other))
            raise InputError(
                f"expected the same labels for all series, got {labels}; choose with --labels CLASS=NAME, or say with "
                "--missing absent or drop what a label means that a series lacks"
            )
        none = {uid for uid in owned if rule == "absent" and len(missing[uid]) == len(class_patterns)}
        kept = {places[uid]: classes for uid, classes in missing.items() if uid not in none}
        counted = {
            uid: tuple(name for name in own if rule == "absent" or name in drawn[uid]) for uid, own in names.items()
        }
        lacking = without(kept, rule, {places[uid]: own for uid, own in counted.items()})
        dropped = none | {uid for uid in owned if places[uid] in lacking.dropped}
        alone = [
            f"{places[uid]} is left out: it has none of the labels, only {labels_in(names[uid])}"
            for uid in owned
            if uid in none
        ]
        return chosen, Lacking(frozenset(dropped), (*lacking.notes, *alone))

    def _patients(self, objects: Index, owned: Iterable[str], root: Path) -> Patients:
        """Series UID -> patient: a hash that tells nothing without the source."""
        places = {uid: one.frames[0].path.parent for uid, one in objects.images.items()}
        named = {uid: Named(place_of(one, root), places[uid], one.patient) for uid, one in objects.images.items()}
        who = patients(named, self.patient, root, "by their PatientID")
        by_path, own = bool(self.patient), who.groups
        studies: dict[str, str] = {}
        for uid, one in objects.images.items():  # names are short and could be guessed from their hash, UIDs are not
            studies[own[uid]] = min(studies.get(own[uid], one.study), one.study)
        # folders may share a study, whose UID was then wiped as the ids were
        hashes = {
            uid: f"p{_hash(studies[name] + name if by_path else studies[name] or name)}" for uid, name in own.items()
        }
        labelled = {uid: own[uid] for uid in owned}
        warnings = spelt_alike(labelled, _places([objects.images[uid] for uid in labelled], root))
        return replace(who, groups=hashes, warnings=warnings)  # names of folders are no case names


def read_scan(name: str, series: Series, by_class: ClassLabels, task: Task, reader: Dicom, root: Path) -> Scan:
    """The series with its labels.

    Raises:
        InputError: a file is broken, or labels lie elsewhere, or overlap in an exclusive task.
    """
    labels = np.zeros(series.grid.shape, label_type(task))
    first = 1 if task.exclusive else 0
    for k, (cls, parts) in enumerate(by_class.items(), start=first):
        mask = _mask(parts, series, reader)
        if task.exclusive:
            if labels[mask].any():
                raise InputError(
                    f"expected labels that do not overlap, got {cls} over another in {int((labels[mask] > 0).sum())} "
                    f"voxels of {parts[0].file.path}; prepare without exclusive=True"
                )
            labels[mask] = k
        else:
            labels |= mask.astype(labels.dtype) << labels.dtype.type(k)
    scales = series.scales
    same = len(set(scales)) == 1
    return Scan(
        read_stored(series),
        labels,
        tuple(f"{name}_slice_{i:03d}" for i in range(len(labels))),
        series.grid.spacing_mm,
        *(scales[0] if same else (1.0, 0.0)),
        unit=series.unit,
        affine=series.grid.affine,
        scales=() if same else scales,
        limits=series.pixels.limits,
        padding=series.padding,
        frames=tuple((frame.path.relative_to(root).as_posix(), frame.number) for frame in series.frames),
    )


def _mask(parts: Sequence[Label], series: Series, reader: Dicom) -> Array:
    """Voxels in at least one of the labels."""
    result = np.zeros(series.grid.shape, bool)
    for file in dict.fromkeys(label.file for label in parts):
        numbers = [label.number for label in parts if label.file == file]
        if file.kind == NIFTI:
            result |= read_label_map(file.path, series.grid, numbers)
            continue
        masks = (
            read_seg(file.path, series.grid, numbers, reader.threshold)
            if file.kind == "SEG"
            else read_rtstruct(file.path, series.grid, numbers, reader.off_mm)
        )
        for mask in masks.values():
            result |= mask
    return result


def _labels(pool: Sequence[Label], names: Sequence[str], series: str) -> tuple[Label, ...]:
    hits = tuple(label for label in pool if label.name in names)
    files = {(label.name, label.file.path) for label in hits}
    twice = [name for name, n in Counter(name for name, _ in files).items() if n > 1]
    if twice:
        got = ", ".join(str(path) for name, path in sorted(files) if name == twice[0])
        raise InputError(f"expected one file with {twice[0]!r} for {series}, got {got}; choose with dicom(masks='...')")
    return hits


def _places(series: Sequence[UncheckedSeries], root: Path) -> dict[str, str]:
    """Series UID -> its folder, with its UID if others lie in the same."""
    shared = Counter(place_of(one, root) for one in series)
    return {
        one.uid: place if shared[place := place_of(one, root)] == 1 else f"{place} (series {one.uid})" for one in series
    }


def _is_named(path: Path, pattern: str) -> bool:
    """Whether a pattern matches a path, whose ending may be in capitals."""
    suffix = "".join(path.suffixes)
    return path.match(pattern) or path.with_name(path.name.removesuffix(suffix) + suffix.lower()).match(pattern)


def _one_for_many(option: str, series: Sequence[UncheckedSeries], root: Path) -> tuple[str, ...]:
    """A warning if a PatientID stands for several patients, as it seems, unless `--patient` says who is who."""
    return () if option else one_for_many(((one.patient, one.frames[0].path.parent) for one in series), root)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
