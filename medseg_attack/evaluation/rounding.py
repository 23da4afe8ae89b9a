"""Models that round every image to values that its file can hold."""

from dataclasses import dataclass, replace

import torch

from medseg_attack.models.sliding_window import shown_as
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
        in_windows: whether the model sees windows of an image alone, which are then rounded one by one.
    """

    model: Model
    values: StoredValues
    image: Image
    ball: Ball
    cases: tuple[Case, ...]
    in_windows: bool = False

    def __call__(self, image: Image) -> LogOdds:
        if image.shape != self.image.shape:  # copies of the channel that differ have no place in a file
            return self.model(image)
        if image.is_set_to(self.image):  # the untouched image is what the file holds
            return self.model(image)
        if self.in_windows:
            with shown_as(image, self.values.rounding(image.detach(), self.image, self.ball)):
                return self.model(image)
        rounded = self.values.image(self.values.raw_nearest(image.detach(), self.image, self.ball), image)
        return self.model(straight_through(rounded, image))

    def bind(self, setting: Setting) -> "RoundedModel":
        """The model of some of its cases."""
        index = torch.tensor([self.cases.index(case) for case in setting.cases], device=self.image.device)
        return replace(self, values=self.values.at(index), image=self.image[index], cases=setting.cases)
