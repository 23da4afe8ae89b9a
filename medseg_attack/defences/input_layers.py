"""The base of layers in front of a model, and the two rules by which a gradient passes them.

A layer is a frozen dataclass, registered with `kind="defence"` in `defences/inputs/`. It maps images in [0, 1] to
images in [0, 1], 2-D and 3-D alike, and every sample by its own seed alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import straight_through
from medseg_attack.registry.foreign import at_fault, is_foreign, lent, part_name, words_of
from medseg_attack.types import Backward, Image

ROUNDING = 1e-3  # between an image in a batch and alone, and beyond [0, 1]
MOST_ROUNDED = 0.01  # of the values, that a layer which rounds may round another way


class InputDefence(ABC):
    """A layer that changes an image before the model sees it."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether its own gradient leads an attack; False where it is 0, or that of a copy instead of a change."""
        return True

    @property
    def network(self) -> nn.Module | None:
        """The network that it asks; its weights are weights of the model behind the layer."""
        return None

    @abstractmethod
    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        """The changed images; sample `i` depends on `seeds[i]` alone."""

    def smooth(self, image: Image, seeds: Sequence[int]) -> Image:
        """A smooth function near the layer, whose gradient replaces the layer's own; by default the identity."""
        return image


class GeometricDefence(InputDefence):
    """A layer that moves pixels or changes the grid, and carries the model's answer back to the image's grid."""

    @abstractmethod
    def __call__(self, image: Image, seeds: Sequence[int]) -> Float[Tensor, "b c *t"]:
        """The changed images, on their own grid; sample `i` depends on `seeds[i]` alone."""

    @abstractmethod
    def back(
        self, log_odds: Float[Tensor, "b k *t"], grid: tuple[int, ...], seeds: Sequence[int]
    ) -> Float[Tensor, "b k *s"]:
        """The answer on the changed images as one on the grid of the untouched ones."""


def layered(layer: InputDefence, image: Image, seeds: Sequence[int], backward: Backward) -> Float[Tensor, "b c *t"]:
    """The images behind a layer, with its own gradient or with that of its stand-in (BPDA).

    Athalye, Carlini & Wagner, arXiv 1802.00420, section 4.1.

    Raises:
        InputError: the layer changes the grid and cannot map masks back, or the number of channels or samples.
    """
    is_warp = isinstance(layer, GeometricDefence)  # whose own gradient is the only one that fits its grid
    is_replaced = not is_warp and (backward == "smooth" or (backward == "adapted" and not layer.differentiable))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_replaced):
        result = layer(lent(layer, image), seeds)
    if not isinstance(result, Tensor) or (result.dtype, result.device) != (image.dtype, image.device):
        raise at_fault(
            layer,
            f"expected images from {part_name(layer)} as it gets, {words_of(image)}, got {words_of(result)}; return "
            "such a tensor",
        )
    if is_foreign(layer):
        _check_images(layer, image, result)
    if is_replaced:
        result = straight_through(result, layer.smooth(image, seeds))
    elif image.requires_grad and torch.is_grad_enabled() and not result.requires_grad:
        result = result + 0 * image  # piecewise constant: its gradient is 0, which is not the same as none
    fixed = 2 if is_warp else image.ndim
    if result.ndim != image.ndim or result.shape[:fixed] != image.shape[:fixed]:
        name = type(layer).__name__
        raise InputError(
            f"expected {name} to keep the shape {tuple(image.shape)} of its images, got {tuple(result.shape)}; make it "
            "a GeometricDefence, whose method back maps masks to the images' grid"
        )
    if is_foreign(layer) and len(image) > 1:
        _check_alone(layer, image, seeds, result)
    return result


def _check_images(layer: InputDefence, image: Image, result: Tensor) -> None:
    """Refuses what a layer returns if it is not finite, or leaves [0, 1] further than the images do."""
    if not bool(result.isfinite().all()):
        raise InputError(f"expected finite images from {part_name(layer)}, got NaN or infinity; repair that code")
    if not result.numel():
        return
    low, high = (float(end) for end in result.detach().aminmax())
    least, most = (float(end) for end in image.detach().aminmax())
    if low < min(least, 0.0) - ROUNDING or high > max(most, 1.0) + ROUNDING:
        raise InputError(
            f"expected images in [0, 1] from {part_name(layer)}, got values from {low:.4g} to {high:.4g}; clamp them"
        )


def _check_alone(layer: InputDefence, image: Image, seeds: Sequence[int], result: Tensor) -> None:
    """Refuses a layer that makes something else of the first or the last image where it is alone with its seed."""
    for place in (0, len(image) - 1):
        with torch.no_grad():
            alone = layer(image[place : place + 1].detach().clone(), seeds[place : place + 1])
        other = alone.shape != result[place : place + 1].shape
        if other or ((alone - result[place : place + 1]).abs() > ROUNDING).double().mean() > MOST_ROUNDED:
            raise InputError(
                f"expected {part_name(layer)} to change each image by itself and by its own seed, got another image "
                "where it is alone; let no statistic of the batch and no other random number into it"
            )
