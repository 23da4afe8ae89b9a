"""A prepared data set, read: cases are cut out of memory maps when they are asked for."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from medseg_attack.data.formats.scan import Array
from medseg_attack.data.prepared.record import ScanRecord, arrays, damage, read_record
from medseg_attack.data.prepared.splits import TEST
from medseg_attack.data.prepared.summary import SummaryForm
from medseg_attack.errors import InputError, nearest
from medseg_attack.escaping import shell
from medseg_attack.numerics.slabs import slabs
from medseg_attack.storage.forms import MOST, Form, TaskForm
from medseg_attack.storage.json_files import read_json
from medseg_attack.storage.kinds import instead
from medseg_attack.storage.paths import is_id
from medseg_attack.types import Batch, Case, CaseRef, PerChannel, Stack, Storage, Task, Window, alike

if TYPE_CHECKING:
    import pandas as pd

OPEN = 16  # scans whose files are kept open
Split = Literal["train", "val", "test", "all"]


class _Description(Form):
    """The description of a prepared data set."""

    task: TaskForm
    fingerprint: str
    summary: SummaryForm
    splits: dict[str, int | str]
    notes: list[str]
    scans: list[str]


class Preparation(Form):
    """The options that scans were prepared with, of which new ones can be prepared alike."""

    window: str = ""
    size: list[Annotated[int, Field(ge=1, le=MOST)]] | None = Field(None, min_length=2, max_length=2)
    plane: str | None = None


class _Poison(Form):
    """The training patients that `medattack poison` changed."""

    patients: list[str] = Field(default_factory=list)


class _Options(Preparation):
    """The options that a data set was prepared with, as far as they are read again."""

    source: str
    format: str = ""
    poison: _Poison = Field(default_factory=_Poison)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set, whose cases can be read.

    Attributes:
        fingerprint: of pixels, labels, geometry and windows; the same wherever the data set is.
        options: what it was prepared with.
        summary: what it holds; see `summary.summary`.
        splits: each patient's part, "test" or a fold.
        notes: what was left out of it.
    """

    root: Path
    task: Task
    fingerprint: str
    options: dict[str, Any]
    summary: dict[str, Any]
    splits: dict[str, str | int]
    notes: tuple[str, ...]
    scans: tuple[str, ...]
    _maps: OrderedDict[str, tuple[Array, Array]] = field(default_factory=OrderedDict, repr=False)

    def __reduce__(self) -> tuple[Callable[[Path], "Prepared"], tuple[Path]]:
        # a loader's process opens its own maps: pickled, a map would travel as the whole array
        return open_prepared, (self.root,)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders that it is read from: its own, and that of the scans. Nothing else is written into them."""
        return self.root, Path(self.options["source"])

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(set(self.splits.values()) - {TEST})

    @cached_property
    def records(self) -> dict[str, ScanRecord]:
        """The record of each scan, by its id.

        Raises:
            InputError: a record is missing or was changed.
        """
        return {scan: read_record(self.root, scan, self.task) for scan in self.scans}

    def refs(self, split: Split, fold: int = 0, dims: int = 2) -> tuple[CaseRef, ...]:
        """The cases of a split, sorted by (shape, id): neighbours can be stacked.

        `fold` is validated on, and trained on by the others; "test" and "all" do not depend on it.

        Args:
            dims: 2: a case is a slice; 3: it is a scan.

        Raises:
            InputError: there is no such split or fold.
        """
        if split not in ("train", "val", "test", "all"):
            raise InputError(f"expected the split train, val, test or all, got {split!r}; choose one of them")
        if split in ("train", "val") and not self.folds:
            raise InputError(
                f"expected patients to train on in {self.root}, got none, since all are held out; prepare it with less "
                "than --test 1"
            )
        if split in ("train", "val") and not 0 <= fold < self.folds:
            raise InputError(f"expected a fold from 0 to {self.folds - 1} of {self.root}, got {fold}; choose one")
        if lost := sorted({record.group for record in self.records.values()} - self.splits.keys()):
            raise InputError(
                f"expected each patient in a split of {self.root}, got none of {lost[0]}; run medattack prepare again"
            )
        refs = [
            ref
            for record in self.records.values()
            if _belongs(self.splits[record.group], split, fold)
            for ref in _cases(record, dims)
        ]
        return tuple(sorted(refs, key=lambda ref: (ref.shape, ref.id)))

    def digests(self, refs: Iterable[CaseRef]) -> set[str]:
        """Short digests of the scans of cases: the same ones in every data set in which a scan was prepared alike."""
        return {self.records[ref.volume].digest[:16] for ref in refs}

    def patients_with(self, digests: frozenset[str], refs: Iterable[CaseRef]) -> set[str]:
        """The patients among the cases of whom a scan has one of these digests."""
        return {ref.group for ref in refs if self.digests([ref]) <= digests} if digests else set()

    def read(self, ref: CaseRef) -> Case:
        """The case: image (channels, rows, columns) in [0, 1], target (classes, rows, columns).

        Of a whole scan both have slices before rows.

        Raises:
            InputError: its arrays are missing or were cut off, or a scan's slices have windows of their own.
        """
        record = self.records[ref.volume]
        # of a whole scan every page is read: a map of its own gives the memory of that back when it is done
        images, labels = self._opened(ref.volume) if ref.index is not None else self._maps_of(ref.volume)
        slices = slice(None) if ref.index is None else ref.index
        codes, stored = labels[slices], images[:, slices]
        window, (slope, inter) = _window(record, ref), _scale(record, ref)
        through = record.spacing_mm[0]
        stack = Stack(ref.index, len(record.case_ids), through) if through and ref.index is not None else None
        order, flips = _order(record)
        return Case(
            id=ref.id,
            volume=ref.volume,
            group=ref.group,
            image=torch.from_numpy(_shown(stored, window, slope, inter)),
            target=torch.from_numpy(_target(codes, self.task)),
            spacing_mm=record.spacing_mm[-codes.ndim :],
            window=window,
            stack=stack,
            storage=Storage(
                # a whole scan stays on the disk; slices are copied, so that they keep no map open
                stored=torch.from_numpy(self._maps_of(ref.volume)[0] if ref.index is None else stored.copy()),
                slope=slope,
                inter=inter,
                limits=record.limits,
                order=order,
                flips=flips,
                padding=record.padding,
            ),
            classes=self.task.classes,
            phase=ref.phase,
        )

    def table(self, dims: int = 2) -> "pd.DataFrame":
        """A row per case: case, volume, group, part ("test" or a fold), slice, shape, spacing_mm and unit.

        Args:
            dims: 2: a case is a slice; 3: it is a scan.
        """
        import pandas as pd  # nothing else here needs it

        rows = [
            {
                "case": ref.id,
                "volume": ref.volume,
                "group": ref.group,
                "part": self.splits[ref.group],
                "slice": ref.index,
                "shape": ref.shape,
                "spacing_mm": self.records[ref.volume].spacing_mm,
                "unit": self.records[ref.volume].unit,
            }
            for ref in self.refs("all", dims=dims)
        ]
        return pd.DataFrame(rows)

    def batch(self, ids: Iterable[str], dims: int = 2, device: torch.device | str = "cpu") -> Batch:
        """Cases by their ids, stacked in that order: `image` (b, c, *s) in [0, 1], `target` (b, k, *s), `cases`.

        Args:
            dims: 2: a case is a slice; 3: it is a scan.

        Raises:
            InputError: there is no such case, or the cases differ in their shape.
        """
        refs = {ref.id: ref for ref in self.refs("all", dims=dims)}
        chosen = list(ids)
        if unknown := [name for name in chosen if name not in refs]:
            raise InputError(f"expected a case of {self.root}, got {unknown[0]!r}; {nearest(unknown[0], refs)}")
        shapes = sorted({refs[name].shape for name in chosen})
        if len(shapes) != 1:
            got = " and ".join(map(str, shapes)) or "no case"
            raise InputError(f"expected cases of one shape of {self.root}, got {got}; choose those of one shape")
        return Batch.of([self.read(refs[name]) for name in chosen], device)

    def stored(self, scan: str) -> Array:
        """A scan's values as its files hold them, (channels, slices, rows, columns), mapped from the disk."""
        return self._opened(scan)[0]

    def window(self, ref: CaseRef) -> Window:
        """The intensities that the case shows as 0 and 1."""
        return _window(self.records[ref.volume], ref)

    def slope(self, ref: CaseRef) -> PerChannel:
        """The size of one stored value of the case, in the unit of its window."""
        return _scale(self.records[ref.volume], ref)[0]

    def damages(self, scans: Iterable[str]) -> list[str]:
        """A sentence for each of these scans whose files are not what `prepare` wrote."""
        return [text for scan in scans if (text := damage(self.root, self.records[scan]))]

    def level(self, ref: CaseRef) -> float:
        """One stored value as a fraction of the case's window, in the finest channel; 0 where floats are stored."""
        if self.records[ref.volume].stored_type.startswith("float"):
            return 0.0
        return float((np.abs(_wide(self.slope(ref), 1)) / _wide(self.window(ref).width, 1)).min())

    def _opened(self, scan: str) -> tuple[Array, Array]:
        if scan in self._maps:
            self._maps.move_to_end(scan)
        else:
            self._maps[scan] = self._maps_of(scan)
            if len(self._maps) > OPEN:  # each map holds a file descriptor, of which a process may have few
                self._maps.popitem(last=False)
        return self._maps[scan]

    def _maps_of(self, scan: str) -> tuple[Array, Array]:
        """New maps of a scan's values, with an axis of channels, and of its labels."""
        images, labels = arrays(self.root, self.records[scan])
        return images if images.ndim == 4 else images[None], labels


def _shown(stored: Array, window: Window, slope: PerChannel, inter: PerChannel) -> NDArray[np.float32]:
    """The intensities of a case as its window shows them, in [0, 1]; float64 in between, of a slab at a time."""
    image = np.empty(stored.shape, np.float32)
    low, high, step, start = (_wide(value, stored.ndim) for value in (window.low, window.high, slope, inter))
    for slab in slabs(stored.shape, stored.ndim - 1):
        native = stored[slab].astype(np.float64) * step + start
        image[slab] = np.clip((native - low) / (high - low), 0, 1)
    return image


def _target(codes: Array, task: Task) -> NDArray[np.bool_]:
    """A channel of each class from the labels of a case."""
    target = np.empty((len(task.classes), *codes.shape), bool)
    for k, channel in enumerate(target):
        for slab in slabs(codes.shape, codes.ndim):
            channel[slab] = codes[slab] == k if task.exclusive else (codes[slab] >> k) & 1
    return target


def _cases(record: ScanRecord, dims: int) -> Iterator[CaseRef]:
    if dims == 3:
        if not record.spacing_mm[0]:
            raise InputError(f"expected scans for a 3-D model, got the picture {record.id}; use a 2-D model")
        yield CaseRef(record.id, record.id, record.group, record.shape, None, record.phase)
        return
    for index, case in enumerate(record.case_ids):
        yield CaseRef(case, record.id, record.group, record.shape[1:], index, record.phase)


def _window(record: ScanRecord, ref: CaseRef) -> Window:
    """The intensities that the case shows as 0 and 1.

    Raises:
        InputError: a whole scan whose slices differ in it: one grey level would not be one change everywhere.
    """
    low, high = record.windows[ref.index or 0]
    if ref.index is None and any(window != (low, high) for window in record.windows):
        raise InputError(
            f"expected one intensity window for all slices of {ref.volume} to take it as a volume, got one for each; "
            "prepare with --window percentile or LOW,HIGH, or attack a network of slices"
        )
    return Window(_per_channel(low), _per_channel(high), record.unit)


def _scale(record: ScanRecord, ref: CaseRef) -> tuple[PerChannel, PerChannel]:
    """Slope and intercept of the case.

    Raises:
        InputError: a whole scan whose slices differ in them.
    """
    if record.slope is not None and record.inter is not None:
        return _per_channel(record.slope), _per_channel(record.inter)
    if ref.index is None and any(scale != record.scales[0] for scale in record.scales):
        raise InputError(
            f"expected one rescale slope and intercept for all slices of {ref.volume} to take it as a volume, got one "
            "for each; attack a network of slices (nnU-Net takes volumes), or prepare without it"
        )
    return record.scales[ref.index or 0] if len(record.scales) > 1 else record.scales[0]


def _order(record: ScanRecord) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`order` and `flips` of a scan's storage: NIfTI's array has x first, where ITK has z."""
    lattice = record.lattice
    if lattice is None or not record.sources or not record.sources[0].path.lower().endswith((".nii", ".nii.gz")):
        return (0, 1, 2), ()
    order = tuple(lattice.axes.index(axis) for axis in (2, 1, 0))
    return order, tuple(axis for axis, flip in enumerate(lattice.flips) if flip)


def _belongs(part: str | int, split: Split, fold: int) -> bool:
    if split in ("all", "test"):
        return split == "all" or part == TEST
    return part != TEST and (part == fold) == (split == "val")


def _per_channel(value: PerChannel) -> PerChannel:
    """One number where those of all channels are the same."""
    return alike(value) if isinstance(value, tuple) else value


def _wide(value: PerChannel, ndim: int) -> Array:
    return np.reshape(value, (-1, *(1 for _ in range(ndim - 1))))


def open_prepared(path: Path) -> Prepared:
    """The data set that `medattack prepare` wrote to `path`.

    Raises:
        InputError: there is none, or it was not finished.
    """
    if not (path / "dataset.json").is_file():
        got = instead(path, "none", f"run medattack prepare --out {shell(str(path))}")
        raise InputError(f"expected a prepared data set in {path}, {got}")
    content = read_json(path / "dataset.json", _Description)
    try:
        if wrong := [scan for scan in content["scans"] if not is_id(scan)]:
            raise ValueError(f"the scan {wrong[0]!r}, whose id is no name of a file")
        return Prepared(
            root=path,
            task=Task.from_json(content["task"]),
            fingerprint=content["fingerprint"],
            options=read_json(path / "options.json", _Options),
            summary=content["summary"],
            splits=content["splits"],
            notes=tuple(content["notes"]),
            scans=tuple(content["scans"]),
        )
    except KeyError as error:
        raise InputError(
            f"expected {error} in {path / 'dataset.json'}, got none; prepare the data again with this version"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected what prepare writes in {path / 'dataset.json'}, got '{error}'; prepare the data again"
        ) from error
