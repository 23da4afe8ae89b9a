"""Linear models: their worst case has a closed form, which attacks are tested against."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Task


class _Oracle(nn.Module):
    """Logits `z = scale * (x - 1/2)` for every class, and (0, z, -50, -50, ...) for an exclusive task.

    Attributes:
        blur: whether `x` is the mean of each pixel's 3 x 3 (x 3) neighbourhood.
    """

    def __init__(self, task: Task, scale: float, blur: bool) -> None:
        super().__init__()
        self.n_classes, self.exclusive, self.scale, self.blur = len(task.classes), task.exclusive, scale, blur

    def forward(self, image: Float[Tensor, "b 1 *s"]) -> Float[Tensor, "b k *s"]:
        if self.blur:  # zeros outside: linear and its own adjoint
            pool = functional.avg_pool2d if image.ndim == 4 else functional.avg_pool3d
            image = pool(image, 3, stride=1, padding=1)
        z = self.scale * image - self.scale / 2
        if not self.exclusive:
            return z.expand(-1, self.n_classes, *z.shape[2:])
        never = torch.full_like(z, -50.0).expand(-1, self.n_classes - 2, *z.shape[2:])
        return torch.cat((torch.zeros_like(z), z, never), 1)


@register("oracle", kind="model", trained=True, bounds={"scale": "(0, inf)"})
def oracle(task: Task, *, scale: float = 10.0) -> SegModel:
    """A pixel has every class if it is at least 1/2, so that a Linf attack flips where |x - 1/2| < eps.

    Args:
        scale: slope of the logits, per unit of the image in [0, 1]; above 0.
    """
    return SegModel(_Oracle(task, scale, blur=False), task)


@register("blurred_oracle", kind="model", trained=True, bounds={"scale": "(0, inf)"})
def blurred_oracle(task: Task, *, scale: float = 10.0) -> SegModel:
    """The oracle behind a 3 x 3 box filter: the gradient of an attack must be the filter's adjoint.

    Args:
        scale: slope of the logits, per unit of the blurred image in [0, 1]; above 0.
    """
    return SegModel(_Oracle(task, scale, blur=True), task)
