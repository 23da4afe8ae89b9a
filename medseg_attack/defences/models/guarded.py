"""A model with layers in front."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from medseg_attack.defences.input_layers import GeometricDefence, InputDefence, layered
from medseg_attack.defences.models.around import AroundModels, as_model, member
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.samples import reseeded
from medseg_attack.registry import register, shown
from medseg_attack.registry.foreign import is_foreign, lent, part_name, require_like
from medseg_attack.types import Image, LogOdds, Task


@register("guarded", kind="model", trained=True, wraps="base")
def guarded(task: Task, base: Any = None, layers: tuple[Any, ...] = ()) -> SegModel:
    """A model with layers that change the image before it: `guarded('unet', [bit_depth(bits=4), median(3)])`.

    Args:
        base: the model: name or folder of a checkpoint, or a spec that brings its weights.
        layers: defences of `medattack ls defences` that are applied to the image, first to last.

    Raises:
        InputError: the model is not trained, or a layer is none.
    """
    for layer in layers:
        if not isinstance(layer, InputDefence):
            raise InputError(
                f"expected layers such as median for guarded, got {shown(layer)}; see 'medattack ls defences'"
            )
    return as_model(Guard(member(base, task, "guarded"), layers))


class Guard(AroundModels):
    """The network of `guarded`."""

    def __init__(self, base: SegModel, layers: Sequence[InputDefence]) -> None:
        super().__init__([base])
        self.layers = tuple(layers)
        self.networks = nn.ModuleList(layer.network for layer in layers if layer.network is not None)

    @property
    def is_random(self) -> bool:
        return super().is_random or any(layer.stochastic for layer in self.layers)

    @property
    def blocks_gradient(self) -> bool:
        return super().blocks_gradient or not all(layer.differentiable for layer in self.layers)

    def forward(self, image: Image) -> LogOdds:
        seeds = self.draws.seeds(len(image))
        grids = [tuple(image.shape[2:])]
        for number, layer in enumerate(self.layers):
            image = layered(layer, image, reseeded(seeds, number), self.backward)
            grids.append(tuple(image.shape[2:]))
        log_odds: LogOdds = self.members[0](image)
        for number, layer in reversed(list(enumerate(self.layers))):
            if isinstance(layer, GeometricDefence):
                expected = log_odds.new_empty(()).expand(*log_odds.shape[:2], *grids[number])
                answer = layer.back(lent(layer, log_odds), grids[number], reseeded(seeds, number))
                require_like(layer, "the answer on the images' grid", expected, answer)
                if is_foreign(layer) and bool(log_odds.isfinite().all()) and not bool(answer.isfinite().all()):
                    raise InputError(
                        f"expected finite numbers from back() of {part_name(layer)}, which got such, got NaN or "
                        "infinity; repair that code"
                    )
                log_odds = answer
        return log_odds
