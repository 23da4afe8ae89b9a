"""A model that is shown only what a file can hold."""

from dataclasses import dataclass

from torch import Tensor

from medseg_attack.attacks.counting import picked
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.registry.parts import told
from medseg_attack.types import Ball, Image, LogOdds, Mask, Model, Task


@dataclass(frozen=True, eq=False)
class RoundedModel:
    """A model that sees of every image only what can be stored of it; gradients pass as if it saw the image itself."""

    model: Model
    levels: StoredValues
    image: Image
    ball: Ball

    @property
    def task(self) -> Task:
        return self.model.task

    def __call__(self, image: Image) -> LogOdds:
        if image.shape != self.image.shape:  # copies of the channel that differ have no place in a file
            return self.model(image)
        seen = self.levels.image(self.levels.nearest(image.detach(), self.image, self.ball), image)
        return self.model(seen + (image - image.detach()))  # the value of `seen`, the gradient of `image`

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)

    def at(self, index: Tensor) -> "RoundedModel":
        """The model of some of the images."""
        return RoundedModel(
            picked(self.model, index), self.levels.at(index), self.image[index], told(self.ball, "at", index)
        )
