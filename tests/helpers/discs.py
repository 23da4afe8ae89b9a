"""A data set of bright and dim discs on which a training of seconds learns something."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from medseg_attack.models import checkpoints
from medseg_attack.training import augment
from medseg_attack.training.loop import train
from medseg_attack.training.options import Options, resolve
from medseg_attack.types import Case, CaseRef, Task, Window

CPU = torch.device("cpu")
DISCS = Task("discs", ("bright", "dim"))
LABELS = Task("discs", ("background", "bright", "dim"), exclusive=True)
SMALL = Options(model="unet_small(channels=(4, 8))", epochs=3, lr=1e-2, batch_size=4)


@dataclass(frozen=True)
class Discs:
    """Noisy images with a bright and a dim disc; patients 0-3 to train on, 4 to validate on."""

    task: Task = DISCS
    shapes: tuple[tuple[int, int], ...] = ((24, 24),)
    slices: int = 4
    name: str = "discs"
    fingerprint: str = "f00"
    root: Path | None = None
    options: dict[str, str] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()

    def refs(self, split, fold=0, dims=2):
        groups = {"train": range(4), "val": range(4, 5), "test": range(5, 6)}[split]
        refs = [
            CaseRef(f"p{g}_s{s}", f"p{g}", f"p{g}", self.shapes[g % len(self.shapes)])
            for g in groups
            for s in range(self.slices)
        ]
        return tuple(sorted(refs, key=lambda ref: (ref.shape, ref.id)))

    def digests(self, refs):
        return {f"digest of {ref.volume}" for ref in refs}

    def read(self, ref):
        random = torch.Generator().manual_seed(augment.crc(ref.id))
        rows, columns = torch.meshgrid(*(torch.arange(n) / n for n in ref.shape), indexing="ij")
        at = 0.3 + 0.4 * torch.rand(2, 2, generator=random)
        bright, dim = (((rows - y) ** 2 + (columns - x) ** 2).sqrt() < 0.2 for y, x in at)
        dim = dim & ~bright
        image = 0.1 + 0.7 * bright + 0.35 * dim + 0.05 * torch.randn(ref.shape, generator=random)
        target = torch.stack([bright, dim])
        if self.task.exclusive:
            target = torch.cat([~target.any(0, keepdim=True), target])
        return Case(ref.id, ref.group, ref.group, image.clamp(0, 1)[None].float(), target, (1.0, 1.0), Window(0, 1))


def trained(folder, data=None, options=SMALL, epochs=math.inf):
    """Trains, or abandons the training after some epochs; its checkpoint's fingerprint if it finished."""
    data = data or Discs()
    for record in train(resolve(options, data), data, folder, CPU):
        if record.epoch >= epochs:
            return None
    return checkpoints.fingerprint(checkpoints.load(folder, data.task))
