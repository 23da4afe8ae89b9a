"""Training of a model behind layers that change its images."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.defences.inputs.pixel_deflection import PixelDeflection
from medseg_attack.defences.models.around import as_model
from medseg_attack.defences.models.guarded import Guard
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError
from medseg_attack.models.draws import Draws
from medseg_attack.registry import register, shown
from medseg_attack.types import Image


@register(
    "behind", kind="defence", cost="1 forward, 1 backward", attacked_with="averaged(attack=bpda(attack=strongest))"
)
@dataclass(frozen=True)
class Behind(TrainingDefence):
    """The training loss of the model behind layers that change its images (PDT and training; Rao, arXiv 2003.13969).

    Losses and attacks of the defences after it meet the layers, too. The model that is kept has no layers: `guarded`
    puts them in front of it.

    Attributes:
        layers: defences of images, which are applied first to last; (): none.

    Raises:
        InputError: a layer is no defence of inputs.
    """

    layers: tuple[Any, ...] = (PixelDeflection(),)

    def __post_init__(self) -> None:
        for layer in self.layers:
            if not isinstance(layer, InputDefence):
                raise InputError(
                    f"expected layers such as median for behind, got {shown(layer)}; see 'medattack ls defences'"
                )

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        guard = Guard(step.model, self.layers)
        guard.draws = Draws("train", tuple(map(str, step.seeds)))
        return replace(step, model=as_model(guard)).loss(image, target)
