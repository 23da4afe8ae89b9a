"""Models that get only such images as a file can hold."""

from dataclasses import dataclass, replace

import torch

from medseg_attack.numerics.samples import straight_through
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.types import AroundModel, Ball, Case, Image, LogOdds, Model, Setting


@dataclass(frozen=True, eq=False)
class RoundedModel(AroundModel):
    """A model that rounds every image to the values of its file; gradients pass as if it did not.

    Attacks see it in place of the model. `StoredValues` does the rounding, from the `Storage` of every case.

    Attributes:
        values: the values that the cases' files can hold.
        image: the untouched images of the cases.
        ball: the ball that a rounded image stays in.
    """

    model: Model
    values: StoredValues
    image: Image
    ball: Ball
    cases: tuple[Case, ...]

    def __call__(self, image: Image) -> LogOdds:
        return self.model(self.rounded(image))

    def rounded(self, image: Image) -> Image:
        """The image as a file holds it, with the gradient of what is rounded."""
        if image.shape != self.image.shape:  # copies of the channel that differ have no place in a file
            return image
        if image.is_set_to(self.image):  # the untouched image is what the file holds
            return image
        rounded = self.values.image(self.values.raw_nearest(image.detach(), self.image, self.ball), image)
        return straight_through(rounded, image)

    def bind(self, setting: Setting) -> "RoundedModel":
        """The model of some of its cases."""
        index = torch.tensor([self.cases.index(case) for case in setting.cases], device=self.image.device)
        return replace(self, values=self.values.at(index), image=self.image[index], cases=setting.cases)
