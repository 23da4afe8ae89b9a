"""Folders of pictures and their masks: PNG, TIFF, GIF, BMP or JPEG, grey or in colour.

SOURCE/images/a.png      SOURCE/masks/a.png                      a mask of one value, of several, or of colours
                         SOURCE/masks/a_disc.png, a_cup.png      a file per class
                         SOURCE/masks/disc/a.png                 a folder per class
                         SOURCE/masks/a_1.png, a_2.png           a file per object, or masks/a/1.png
SOURCE/train/images/...  SOURCE/test/images/...                  a split of the data set's own, which is kept
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_attack.data.cohort.doubles import canonical, unique
from medseg_attack.data.cohort.missing import require_rule, without
from medseg_attack.data.cohort.notes import left_out, notes_on_scans
from medseg_attack.data.cohort.patients import Named, Patients, patients
from medseg_attack.data.datasets.label_names import parse
from medseg_attack.data.datasets.mask_files import MaskFiles, match_masks
from medseg_attack.data.datasets.mask_values import MaskCodes, codes_of_files, codes_of_values
from medseg_attack.data.datasets.source import ScanFile, Source, require_folder, require_split
from medseg_attack.data.formats.folders import listed, subfolders
from medseg_attack.data.formats.leaving_out import is_left_out, offering, refuse_unknown
from medseg_attack.data.formats.pictures import header, is_grey, is_picture, notes_of, read_picture, reduced
from medseg_attack.data.formats.scan import Lattice, Scan
from medseg_attack.errors import InputError, plural, require
from medseg_attack.registry import register, spec
from medseg_attack.storage.paths import real_path
from medseg_attack.types import Task

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

COLOURS = ("red", "green", "blue")


@register("folder", kind="dataset")
@dataclass(frozen=True)
class Folder:
    """images/ and masks/ of PNG, TIFF, GIF, BMP or JPEG: grey levels or colours, one or several classes.

    Pictures whose three channels are all equal are taken as grey. Images without a mask and masks without an image
    are left out and named.

    Attributes:
        labels: classes and their grey levels, palette indices or colours in the masks, "disc=128,cup=255" or
            "lesion=#ff0000"; `|` joins several, `*` stands for all but 0, background=255 for another background.
            Of masks with a file per class: their names. "": masks have one value beside 0, the class "foreground".
        threshold: masks' grey levels from here on are the class; 0: masks must hold nothing but their values.
        patient: regular expression that is searched for in the file's name; its first group, or all of it, is the
            patient; "folder": the folders of images/. "": every image counts as one. See `cohort.patients`.
        split_by: "folder": refuses a folder without train/ and test/; their split is kept in any case.
        missing: of masks with a file per class, what is done about an image without one of them: "absent" (the class
            has no pixel), "drop" (the image is left out) or "refuse".
        spacing_mm: between rows and between columns; (): not known, distances are in pixels.

    Raises:
        InputError: a field is out of range, or there is no such rule.
    """

    labels: str = ""
    threshold: float = 0.0
    patient: str = ""
    spacing_mm: tuple[float, ...] = ()
    missing: str = "absent"
    split_by: str = ""

    def __post_init__(self) -> None:
        require(self)
        require_split(self.split_by)
        require_rule(self.missing)
        if self.spacing_mm and (len(self.spacing_mm) != 2 or min(self.spacing_mm) <= 0):
            raise InputError(f"spacing_mm: expected two positive lengths, got {self.spacing_mm}; e.g. (0.5, 0.5)")
        if self.threshold < 0:
            raise InputError(f"--threshold: expected a grey level above 0, got {self.threshold:g}; 128 is usual")

    def listing(self, root: Path) -> Source:
        """The pairs; masks are read as well unless `labels` or `threshold` say what they hold."""
        require_folder(root, "images/ and masks/")
        listings = [_images(folder, prefix, part) for folder, prefix, part in _parts(root)]
        refuse_unknown()
        images = {name: path for listing in listings for name, path in listing.images.items()}
        masks = {name: files for listing in listings for name, files in listing.masks.items()}
        parts = {name: listing.part for listing in listings for name in listing.images}
        if self.split_by and "test" not in parts.values():
            raise InputError(
                f"--split-by folder: expected train/ and test/ with pictures in {root}, got no test/; drop --split-by"
            )
        if not masks:
            raise InputError(
                f"expected a mask of one name for each image in {root}, got no pair; name each mask like its image"
            )
        marks = self._marks(root, masks)
        lacking = without(_lacking(marks, masks), self.missing, masks)
        paths = {name: images[name] for name in sorted(masks) if name not in lacking.dropped}
        if not paths:
            raise InputError(
                f"--missing drop: expected an image of {root} with a mask for each of {', '.join(marks.classes)}, got "
                "none; give --missing absent"
            )
        channels, window = _kind(paths)
        task = Task(real_path(root).name, marks.classes, marks.exclusive, channels, COLOURS if channels == 3 else ())
        who = patients(
            {name: Named(path.name, path, name) for name, path in paths.items()},
            self.patient,
            root / "images" if (root / "images").is_dir() else root,
            "by their images: each counts as a patient",
        )
        read = functools.partial(_read, marks=marks, channels=channels, spacing_mm=self.spacing_mm)
        scans = [
            ScanFile(
                name,
                who.groups[name],
                path,
                (path, *masks[name].values()),
                functools.partial(read, name, path, masks[name]),
                part=parts[name],
            )
            for name, path in paths.items()
        ]
        notes = [note for listing in listings for note in listing.notes] + self._notes(who, set(parts.values()))
        return Source(
            root,
            spec(self),
            task,
            tuple(scans),
            (*notes, *lacking.notes, *self._header_notes(paths)),
            window,
            self.threshold,
            patient_rule=who.rule,
        )

    def _marks(self, root: Path, masks: Mapping[str, Mapping[str, Path]]) -> MaskCodes:
        by_class = parse(self.labels)
        names = sorted({name for files in masks.values() for name in files})
        paths = {path: image for image, files in masks.items() for path in files.values()}
        if names == [""] or all(not name or name.isdecimal() for name in names):
            return codes_of_values(by_class, self.threshold, paths)
        if "" in names:
            raise InputError(
                f"expected for every image one mask, or one for each of {', '.join(names[1:])}, got both in {root}; "
                "keep one kind"
            )
        return codes_of_files(by_class, self.threshold, names, paths, root)

    def _header_notes(self, paths: Mapping[str, Path]) -> tuple[str, ...]:
        if self.spacing_mm:
            return ()
        return notes_on_scans({name: notes_of(path) for name, path in paths.items()})

    def _notes(self, who: Patients, parts: set[str]) -> list[str]:
        notes = list(who.warnings)
        if len(set(who.groups.values())) == len(who.groups):
            notes.append(
                "every image counts as a patient of its own; if some are of one patient, give --patient, or "
                "splits share patients and intervals are too narrow"
            )
        if not self.spacing_mm:
            notes.append("the size of a pixel is not known and is taken as 1 mm: distances are in pixels")
        if "test" in parts:
            notes.append("the data set's own test part is held out; --test is not used")
        return notes


@dataclass(frozen=True)
class _Part:
    """One pair of images/ and masks/: files by id, and what was left out."""

    part: str
    images: Mapping[str, Path]
    masks: Mapping[str, MaskFiles]
    notes: Sequence[str]


def _parts(root: Path) -> list[tuple[Path, str, str]]:
    """Folders that hold images/ and masks/, what their ids begin with, and their part of the data set's own split."""
    if (root / "images").is_dir():
        return [(root, "", "")]
    parts = [
        (folder, f"{folder.name}_", PARTS[folder.name.lower()])
        for folder in subfolders(root)
        if folder.name.lower() in PARTS and (folder / "images").is_dir()
    ]
    if not parts:
        raise InputError(
            f"expected images/ and masks/ in {root}, or in train/ and test/ below it, got "
            f"{', '.join([path.name for path in listed(root)][:5])}; give the folder that holds them"
        )
    return parts


def _images(folder: Path, prefix: str, part: str) -> _Part:
    require_folder(folder / "images", "pictures")
    pictures = filter(is_picture, listed(folder / "images"))
    stems = unique(((path.stem, path) for path in pictures), "picture")
    if not stems:
        raise InputError(f"expected PNG, TIFF, GIF, BMP or JPEG pictures in {folder / 'images'}, got none; add some")
    masks, lost = match_masks(folder / "masks", stems)
    stems = {name: path for name, path in stems.items() if not is_left_out(f"{prefix}{name}")}
    masks = {name: files for name, files in masks.items() if name in stems}
    alone = sorted(stems.keys() - masks.keys())
    notes = [left_out(f"{prefix}{name}", stems[name], "it has an image but no mask") for name in alone]
    notes += [left_out(str(path), path, "it has no image") for path in lost]
    named = {f"{prefix}{name}": path for name, path in stems.items()}
    return _Part(part, named, {f"{prefix}{name}": files for name, files in masks.items()}, notes)


def _lacking(marks: MaskCodes, masks: Mapping[str, MaskFiles]) -> dict[str, list[str]]:
    """Image -> the classes of which it has no file, where classes have files."""
    files = marks.files or {}
    return {
        image: [cls for cls, names in files.items() if not any(canonical(name) in present for name in names)]
        for image, present in masks.items()
    }


def _kind(paths: Mapping[str, Path]) -> tuple[int, str]:
    """How many channels the pictures have, and the window that shows all that their type holds.

    Raises:
        InputError: some are in colour and some hold one channel alone, or one cannot be read.
    """
    headers = {}
    coloured = None
    for name, path in paths.items():
        with offering(name):
            headers[path] = header(path)
            if coloured is None and headers[path][0] and not is_grey(read_picture(path)):
                coloured = path
    bits = {bits for _, bits in headers.values()}
    if coloured is None:
        return 1, "0,255" if bits == {8} else "percentile"
    grey = [path for path, (colours, _) in headers.items() if not colours]
    if grey:
        raise InputError(
            f"expected pictures of one number of channels, got colours in {coloured} and "
            f"{plural(len(grey), 'picture')} of grey levels ({grey[0]} ...); convert or leave out one kind"
        )
    return 3, {frozenset({8}): "0,255", frozenset({16}): "0,65535"}.get(frozenset(bits), "percentile")


def _read(
    name: str, image: Path, files: MaskFiles, *, marks: MaskCodes, channels: int, spacing_mm: tuple[float, ...]
) -> Scan:
    pixels = reduced(read_picture(image), channels, image)
    labels = marks.read(files, image, pixels.shape[1:])
    rows_mm, columns_mm = spacing_mm or (1.0, 1.0)
    stored = pixels if channels == 1 else pixels[:, None]
    return Scan(stored, labels[None], (name,), (0.0, rows_mm, columns_mm), lattice=Lattice((1, *pixels.shape[1:])))
