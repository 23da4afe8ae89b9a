"""The meaning of the pixels of mask pictures: classes by value, colour, file or threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_attack.data.datasets.label_names import LabelPattern, LabelPatterns, match
from medseg_attack.data.formats.leaving_out import offering
from medseg_attack.data.formats.pictures import LOSSY, is_coloured_palette, read_marks, read_picture
from medseg_attack.data.formats.scan import Array
from medseg_attack.errors import InputError

FOREGROUND, BACKGROUND, ANY = "foreground", "background", "*"
_SAY = "give --threshold 128 where edges were smoothed, or the classes' values as --labels 'disc=128,cup=255'"


@dataclass(frozen=True)
class MaskCodes:
    """How the masks of an image become one array of labels.

    Attributes:
        values: of each class (and of the background, if that is not 0), with colours as 0xrrggbb; empty: all but 0.
        colours: whether they are.
        files: of each class, where classes have files of their own.
        threshold: 0: none.
        by_index: whether palettes stand for their indices, since some mask of the data set has colours in its own.
    """

    classes: tuple[str, ...]
    exclusive: bool = False
    values: Mapping[str, frozenset[int]] | None = None
    colours: bool = False
    files: Mapping[str, tuple[str, ...]] | None = None
    threshold: float = 0.0
    by_index: bool = False

    def read(self, masks: Mapping[str, Path], image: Path, shape: tuple[int, ...]) -> Array:
        """Labels (rows, columns) as `Scan.labels` has them, of the masks of one image by name.

        Raises:
            InputError: a mask is of another size, or has values that no class has.
        """
        labels = np.zeros(shape, np.min_scalar_type(2 ** len(self.classes) - 1))
        for name, path in masks.items():
            if self.values is not None and self.exclusive:
                labels = np.maximum(labels, self._classes(path, image, shape).astype(labels.dtype))
                continue
            foreground = self._foreground(path, image, shape)
            for bit, cls in enumerate(self.classes):
                if self.files is None or name in self.files[cls]:
                    labels |= (foreground.astype(labels.dtype) << bit).astype(labels.dtype)
        return labels

    def _foreground(self, path: Path, image: Path, shape: tuple[int, ...]) -> Array:
        if self.threshold:
            grey = read_picture(path).mean(axis=0)
            _check_size(grey, path, image, shape)
            bright: Array = grey >= self.threshold
            return bright
        if self.values is not None:
            first: Array = self._classes(path, image, shape) == 1
            return first
        values, in_colour = _exact(path, self.by_index)
        _check_size(values, path, image, shape)
        if len(distinct := np.unique(values[values != 0])) > 1:
            raise _many(distinct, in_colour, path)
        marked: Array = values != 0
        return marked

    def _classes(self, path: Path, image: Path, shape: tuple[int, ...]) -> Array:
        """0 for the background, 1 for the first class that has values, and so on."""
        assert self.values is not None
        marks, in_colour = _exact(path, self.by_index)
        _check_size(marks, path, image, shape)
        if in_colour != self.colours and marks.any():
            raise InputError(
                f"expected {'colours' if self.colours else 'grey levels or palette indices'} in the mask {path}, got "
                f"{'colours' if in_colour else 'values'}; write --labels as {_form(in_colour)}"
            )
        result = np.full(marks.shape, -1, np.int16)
        order = [BACKGROUND, *(cls for cls in self.classes if cls != BACKGROUND)]
        for index, cls in enumerate(order):
            result[np.isin(marks, list(self.values[cls]))] = index
        if (result < 0).any():
            other = np.unique(marks[result < 0])
            known = ", ".join(_shown(value, self.colours) for values in self.values.values() for value in values)
            raise InputError(
                f"expected the values {known} in the mask {path}, got {len(other)} other "
                f"({', '.join(_shown(int(value), in_colour) for value in other[:4])}); add them to --labels, or "
                "give --threshold 128 where edges were smoothed"
            )
        return result


def codes_of_values(by_class: LabelPatterns, threshold: float, masks: Mapping[Path, str]) -> MaskCodes:
    """The codes of masks that show all classes in one picture; masks are read if no option says what they hold.

    Args:
        masks: with the name of the image of each.

    Raises:
        InputError: they have several values beside 0 and nobody said which, or options that contradict each other.
    """
    names = [cls for cls in by_class if cls != BACKGROUND]
    any_value = (LabelPattern(ANY),)
    if threshold or all(patterns == any_value for patterns in by_class.values()):
        if len(by_class) > 1 or any(patterns != any_value for patterns in by_class.values()):
            raise InputError(
                f"--threshold: expected one class, got {', '.join(by_class)} with values of their own in --labels; "
                "write --labels 'polyp=*' or drop one of the two"
            )
        by_index = not threshold and _by_index(masks)
        if not threshold:
            _check_one_value(masks, by_index)
        return MaskCodes(tuple(names) or (FOREGROUND,), threshold=threshold, by_index=by_index)
    if not names:
        raise InputError("--labels: expected a class beside the background, got none; write 'disc=128,background=255'")
    in_colour = {pattern.text.startswith("#") for patterns in by_class.values() for pattern in patterns}
    if len(in_colour) > 1:
        raise InputError("--labels: expected values or colours, got both; write all as 'disc=128' or as 'disc=#00ff00'")
    colours = in_colour.pop()
    values = {BACKGROUND: frozenset({0})} | {
        cls: frozenset(_value(pattern.text) for pattern in patterns) for cls, patterns in by_class.items()
    }
    if len({value for each in values.values() for value in each}) < sum(map(len, values.values())):
        raise InputError(
            f"--labels: expected each value once, got {_texts(by_class)} (0 is background); for classes "
            "within one another give each masks of its own, as masks/disc/ and masks/cup/"
        )
    classes = tuple(names) if len(names) == 1 else (BACKGROUND, *names)
    return MaskCodes(classes, len(names) > 1, values, colours, by_index=_by_index(masks))


def codes_of_files(
    by_class: LabelPatterns, threshold: float, names: Sequence[str], masks: Mapping[Path, str], root: Path
) -> MaskCodes:
    """The codes of masks with a file per class; by default a class for each name."""
    files = match(by_class, names, f"the masks of {root}") if by_class else {name: (name,) for name in names}
    by_index = not threshold and _by_index(masks)
    return MaskCodes(tuple(files), files=files, threshold=threshold, by_index=by_index)


def _by_index(masks: Mapping[Path, str]) -> bool:
    """Whether some mask shows colours of a palette: a grey class is then an index, also where it is alone."""
    for path, name in masks.items():
        with offering(name):
            if path.suffix.lower() not in LOSSY and is_coloured_palette(path):
                return True
    return False


def _texts(by_class: LabelPatterns) -> str:
    """The patterns as they are written."""
    return ", ".join(f"{cls}={'|'.join(map(str, patterns))}" for cls, patterns in by_class.items())


def _check_one_value(masks: Mapping[Path, str], by_index: bool) -> None:
    """That all masks have one and the same value beside 0."""
    files_by_value: dict[int, Path] = {}
    for path, name in masks.items():
        with offering(name):
            marks, in_colour = _exact(path, by_index)
        values = np.unique(marks)
        files_by_value |= {int(value): path for value in values[values != 0]}
        if len(files_by_value) > 1:
            raise _many(np.array(sorted(files_by_value)), in_colour, path)


def _exact(path: Path, by_index: bool) -> tuple[Array, bool]:
    if path.suffix.lower() in LOSSY:
        raise InputError(
            f"expected a mask without loss, got the JPEG {path}, whose values are blurred; give --threshold 128 if it "
            "shows one class (which --labels 'polyp=*' names), or write the masks of several classes as PNG"
        )
    return read_marks(path, by_index=by_index)


def _many(values: Array, in_colour: bool, path: Path) -> InputError:
    if in_colour:
        least, most = (_shown(int(value), True) for value in (values.min(), values.max()))
        todo = f"give the classes' colours as --labels 'disc={least},cup={most}'"
    else:
        least, most = (str(value) for value in (values.min(), values.max()))
        todo = _SAY
    return InputError(
        f"expected one value beside 0 in the masks, got {len(values)} from {least} to {most} in {path}; {todo}"
    )


def _check_size(marks: Array, path: Path, image: Path, shape: tuple[int, ...]) -> None:
    if marks.shape != shape:
        raise InputError(
            f"expected image and mask of one size, got {shape[0]} x {shape[1]} in {image} and "
            f"{marks.shape[0]} x {marks.shape[1]} in {path}; give each image its own mask"
        )


def _value(text: str) -> int:
    try:
        return int(text[1:], 16) if text.startswith("#") and len(text) == 7 else int(text)
    except ValueError as error:
        raise InputError(
            f"--labels: expected values or colours in masks, got {text!r}; write 'disc=128,cup=255' or 'lesion=#ff0000'"
        ) from error


def _shown(value: int, colour: bool) -> str:
    return f"#{value:06x}" if colour else str(value)


def _form(colours: bool) -> str:
    return "'lesion=#ff0000'" if colours else "'disc=128'"
