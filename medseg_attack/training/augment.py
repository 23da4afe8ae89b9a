"""Training cases on one grid, or patches of them, augmented.

How a case looks in an epoch follows from (seed, epoch, case) alone.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medseg_attack.data.prepared.reading import Split
from medseg_attack.models.segmodel import resized
from medseg_attack.numerics.samples import widen
from medseg_attack.training.distributed import ProcessGroup
from medseg_attack.types import CaseRef, CaseSource, Task

CACHE_BYTES = 2**31  # of decoded training cases; beyond it they are read again in every epoch


@runtime_checkable
class TrainingData(CaseSource, Protocol):
    """The part of a prepared data set that training needs.

    Attributes:
        root: its folder; None where it is in none.
        options: what it was prepared with.
        sources: the folders that it is read from, into which nothing else is written.
    """

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def root(self) -> Path | None: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def sources(self) -> tuple[Path, ...]: ...

    def refs(self, split: Split, fold: int = 0, dims: int = 2) -> Sequence[CaseRef]: ...

    def digests(self, refs: Iterable[CaseRef]) -> set[str]: ...


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """The cases, resized to `grid` and augmented for `epoch`; image (c, *grid) and 0/1 target (k, *grid).

    With `patches`, nothing is resized: a case gives random parts of that shape, as many as would cover it, two in three
    of them around a voxel of an organ. Without `augment`, cases and patches stay as they are.
    """

    def __init__(
        self,
        data: TrainingData,
        refs: Sequence[CaseRef],
        grid: tuple[int, ...],
        seed: int,
        *,
        patches: bool = False,
        augment: bool = True,
    ) -> None:
        self.data, self.refs, self.grid, self.seed, self.patches = data, refs, grid, seed, patches
        self.epoch = 0
        self.transform = _transform(grid, patches, augment)
        each = 4 * (data.task.channels + 1) * max(int(np.prod(ref.shape if patches else grid)) for ref in refs)
        self.cached = [self._decoded(ref) for ref in refs[: CACHE_BYTES // each]]
        self.parts = [(i, n) for i, ref in enumerate(refs) for n in range(parts(ref, grid) if patches else 1)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        index, part = self.parts[at]
        ref = self.refs[index]
        image, code = self.cached[index] if index < len(self.cached) else self._decoded(ref)
        self.transform.set_random_state(seed=crc(self.seed, self.epoch, ref.id, *([part] if part else [])))
        transformed = self.transform({"image": image, "target": code})
        changed = transformed[0] if self.patches else transformed  # the library's patches come in a list
        target = decoded(_plain(changed["target"]), self.data.task)
        return _plain(changed["image"]).clamp(0, 1), target.float()

    def _decoded(self, ref: CaseRef) -> tuple[Tensor, Tensor]:
        case = self.data.read(ref)
        if self.patches:
            return case.image, encoded(case.target.float(), self.data.task)
        image = resized(case.image[None], self.grid)[0]
        return image, encoded(resized(case.target[None].float(), self.grid)[0], self.data.task)


def batches(
    cases: TrainingSet, epoch: int, batch_size: int, device: torch.device, workers: int, group: ProcessGroup
) -> Iterator[tuple[Tensor, Tensor, Sequence[int]]]:
    """The epoch's batches in its own order, with the places of their cases; of each the part of this process.

    The last one is dropped unless it is full or the only one.
    """
    cases.epoch = epoch
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(crc(cases.seed, epoch)))
    cut = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    if len(cut) > 1 and len(cut[-1]) < batch_size:
        cut.pop()  # batch statistics of a few cases would be stored as the data set's
    on_gpu, own = device.type == "cuda", [list(group.part(places)) for places in cut]
    loader = DataLoader(cases, batch_sampler=own, num_workers=workers, pin_memory=on_gpu, generator=torch.Generator())
    for (image, target), places in zip(loader, own, strict=True):
        yield image.to(device, non_blocking=on_gpu), target.to(device, non_blocking=on_gpu), places


def parts(ref: CaseRef, window: tuple[int, ...]) -> int:
    """How many patches a case gives in an epoch."""
    return max(1, round(float(np.prod(ref.shape)) / float(np.prod(window))))


def crc(*parts: object) -> int:
    """A seed of 32 bits that is the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def encoded(target: Float[Tensor, "k *s"], task: Task) -> Float[Tensor, "1 *s"]:
    """All classes in one plane, which is rotated once, not K times: the class's index, or one bit per class.

    `target` are the shares of a pixel that its classes have; float32 holds 24 bits exactly.
    """
    if task.exclusive:
        return target.argmax(0, keepdim=True).float()
    bits = 2.0 ** widen(torch.arange(len(target)), target)
    return ((target >= 0.5) * bits).sum(0, keepdim=True)


def decoded(code: Float[Tensor, "1 *s"], task: Task) -> Tensor:
    """The masks (k, *s) of a plane."""
    classes = widen(torch.arange(len(task.classes)), code)
    if task.exclusive:
        return code.long() == classes
    return (code.long() >> classes) & 1 == 1


def _transform(grid: tuple[int, ...], patches: bool, augment: bool) -> Any:
    """MONAI's random patches; to augment, flips, quarter turns of square grids, affine maps, brightness and contrast.

    A scan is neither flipped nor turned: which way is up, front and left is what tells some of its organs apart.
    """
    from monai import transforms

    both = ("image", "target")
    pad = [transforms.SpatialPadd(both, grid)] if patches else []
    cut = [transforms.RandCropByPosNegLabeld(both, "target", grid, pos=2, neg=1)] if patches else []
    if not augment:
        return transforms.Compose([*pad, *cut])
    flips = [transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in (0, 1)] if len(grid) == 2 else []
    turns = [transforms.RandRotate90d(both, prob=0.5, max_k=3)] if len(grid) == 2 and len(set(grid)) == 1 else []
    return transforms.Compose(
        [
            *pad,
            *cut,
            *flips,
            *turns,
            transforms.RandAffined(
                both,
                prob=0.7,
                rotate_range=0.26,
                scale_range=(0.15,) * len(grid),
                translate_range=tuple(0.06 * n for n in grid),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                cache_grid=True,
                spatial_size=grid,
            ),
            transforms.RandScaleIntensityd("image", factors=0.2, prob=0.5),
            transforms.RandAdjustContrastd("image", gamma=(0.7, 1.4), prob=0.5),
        ]
    )


def _plain(tensor: Tensor) -> Tensor:
    from monai.data import MetaTensor

    plain: Tensor = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    return plain
