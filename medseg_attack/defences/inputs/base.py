"""The hook in front of a model: a defence that changes the image."""

from abc import ABC, abstractmethod
from typing import ClassVar

from medseg_attack.types import Image


class InputDefence(ABC):
    """A layer in front of a model; a base of frozen dataclasses, whose fields are its options.

    Attributes:
        stochastic: whether two calls on one image may differ.
        geometric: whether the image moves on its grid, so that masks must be moved back.
        differentiable: whether its own gradient is of use to an attack; otherwise `smooth` stands in for it.
    """

    stochastic: ClassVar[bool] = False
    geometric: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, image: Image) -> Image:
        """The image that the network sees, on the same grid."""

    def smooth(self, image: Image) -> Image:
        """A differentiable function that is close to the defence: its backward pass under BPDA."""
        return image
