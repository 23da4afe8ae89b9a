"""Training by several processes that torchrun started: each takes its part of every batch, all keep the same weights.

The loss is that of the whole batch, batch norms take the statistics of the whole batch, and dropout draws for the whole
batch, so that on the CPU the number of processes changes a training by no more than the order of float32 sums does.
"""

import copy
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medseg_attack.defences.training.base import Criterion, TrainingDefence
from medseg_attack.errors import InputError
from medseg_attack.registry import spec
from medseg_attack.storage.ranks import process_rank

T = TypeVar("T")

_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)
PATIENCE = datetime.timedelta(minutes=30)  # until a process that waits for another one gives up


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one training; without torchrun there is one, and nothing is exchanged.

    Attributes:
        index: number of this process, from 0; the first one alone writes.
        count: number of processes.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def require(self, batch_size: int, n_cases: int, defences: Sequence[TrainingDefence]) -> None:
        """Refuses what several processes cannot train together.

        Args:
            n_cases: training cases of an epoch.

        Raises:
            InputError: batches have no equal parts, or the loss of a defence is not a sum over parts.
        """
        if self.count == 1:
            return
        size = min(batch_size, n_cases)
        if size % self.count:
            what = f"batches of {batch_size}" if size == batch_size else f"one batch of {n_cases} cases"
            raise InputError(
                f"expected batches that {self.count} processes share equally, got {what}; use --batch-size "
                f"{self.count * max(1, round(batch_size / self.count))}, or another --nproc-per-node"
            )
        for defence in defences:
            if not defence.by_parts:
                raise InputError(
                    f"expected a defence whose batches can be cut into parts under torchrun, got {spec(defence)}, "
                    "whose loss or memory is of whole batches; train it with one process"
                )

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """The part of a batch that this process takes; all parts are of one size."""
        size = len(items) // self.count
        return items[self.index * size : (self.index + 1) * size] if self.count > 1 else items

    def over_batch(self, criterion: Criterion) -> Criterion:
        """The criterion of the whole batch, of which the gradient is taken by the own part alone."""
        if self.count == 1:
            return criterion
        return lambda log_odds, target: criterion(self._joined(log_odds), self._joined(target))

    def _joined(self, part: Tensor) -> Tensor:
        """The whole batch; only this process's part of it has a gradient."""
        parts = [torch.empty_like(part) for _ in range(self.count)]
        dist.all_gather(parts, part.detach().contiguous())
        parts[self.index] = part
        return torch.cat(parts)

    def add_gradients(self, model: nn.Module) -> None:
        """Adds up the gradients that the processes have by their parts of a batch."""
        if self.count == 1:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(
            gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(total.view_as(gradient))

    def whole_batch(self) -> AbstractContextManager[Any]:
        """A scope in which batch norms in training mode and dropout are those of the whole batch."""
        return nullcontext() if self.count == 1 else _WholeBatch(self)

    def shared(self, value: T) -> T:
        """The value that the first process has."""
        if self.count == 1:
            return value
        box = [copy.copy(value)]
        dist.broadcast_object_list(box)
        return box[0]

    def merged(self, part: Mapping[str, T]) -> dict[str, T]:
        """The entries of all processes."""
        if self.count == 1:
            return dict(part)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, dict(part))
        return {key: value for each in parts for key, value in each.items()}


ALONE = ProcessGroup()


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """A scope in which this process is joined with the others that torchrun started; alone without torchrun.

    Raises:
        InputError: RANK and WORLD_SIZE are no rank, or the processes have no device that can exchange tensors.
    """
    rank = process_rank()
    if rank.count == 1:
        yield ALONE
        return
    if device.type == "mps":
        raise InputError("expected --device cpu or cuda under torchrun, got mps; choose one of them")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # torchrun starts killed processes again beside the store of their first life, which has the addresses of the dead
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    first_store = next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
    store = dist.PrefixStore(f"life {life}", first_store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank.index, world_size=rank.count, timeout=PATIENCE)
    try:
        yield ProcessGroup(rank.index, rank.count)
    finally:
        dist.destroy_process_group()


class _WholeBatch(TorchFunctionMode):
    """Batch norms and dropout of the batch that all processes have parts of, whatever layer calls them.

    torch's own layer of that kind is for GPUs alone.
    """

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # functions of torch.nn.functional pass what they were called with in one form
        kwargs = kwargs or {}
        if func is functional.batch_norm and kwargs["training"]:
            return self._normalised(*args, **kwargs)
        if func in _DROPOUTS and kwargs["training"] and 0 < kwargs["p"] < 1:
            (image,) = args
            noise = self._noise(image, kwargs["p"], whole_maps=func is not functional.dropout)
            return image.mul_(noise) if kwargs["inplace"] else image * noise
        return func(*args, **kwargs)

    def _noise(self, image: Tensor, p: float, *, whole_maps: bool) -> Tensor:
        """The factors of a dropout, drawn for the whole batch: all processes are at the same random number."""
        shape = (*image.shape[:2], *[1] * (image.ndim - 2)) if whole_maps else image.shape
        noise = image.new_empty((shape[0] * self.group.count, *shape[1:])).bernoulli_(1 - p).div_(1 - p)
        return noise[self.group.index * shape[0] : (self.group.index + 1) * shape[0]]

    def _normalised(  # noqa: PLR0913 - the arguments of torch's function
        self,
        image: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        *,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
        training: bool,
    ) -> Tensor:
        axes = [axis for axis in range(image.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(image.ndim)]
        n = self.group.count * image.numel() // image.shape[1]
        wide = image.float()
        mean: Tensor = _Sum.apply(wide.sum(axes)) / n
        centred = wide - mean.view(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(axes)) / n
        with torch.no_grad():
            if running_mean is not None and running_variance is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_variance.lerp_((variance * n / max(n - 1, 1)).to(running_variance), momentum)
        result = centred * torch.rsqrt(variance + eps).view(shape)
        result = result if weight is None else result * weight.view(shape)
        return (result if bias is None else result + bias.view(shape)).to(image.dtype)


class _Sum(torch.autograd.Function):
    """The sum over processes of a tensor that each of them has, with its gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
