"""Square boxes of a slice, whose middle is painted anew."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.numerics.fields import stretched

SIDE = 32  # cells of a box along a side, whatever its size in the image
HOLE = 20  # of them, in the middle, that are painted
FEATHER = 2  # pixels over which what was painted fades into the image


@dataclass(frozen=True)
class Box:
    """A square box of a slice, which may reach beyond it.

    Attributes:
        row, column: of its first pixel.
        side: in pixels.
    """

    row: int
    column: int
    side: int

    @classmethod
    def around(cls, place: Bool[Tensor, "h w"]) -> "Box":
        """The box whose middle half holds all marked pixels, and the hole with it; in the corner if none is marked."""
        if not place.any():
            return cls(0, 0, SIDE)
        ends = [(int(at.min()), int(at.max()) + 1) for at in place.nonzero(as_tuple=True)]
        side = max(SIDE, *(2 * (high - low) for low, high in ends))
        row, column = ((low + high) // 2 - side // 2 for low, high in ends)
        return cls(row, column, side)

    def cut(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "c 32 32"]:
        """The content of the box on its cells; beyond the image its last pixels are repeated."""
        rows, columns = (
            (start + torch.arange(self.side, device=image.device)).clamp(0, n - 1)
            for start, n in zip((self.row, self.column), image.shape[1:], strict=True)
        )
        return stretched(image[:, rows][:, :, columns][None], (SIDE, SIDE))[0]

    def paste(self, cells: Float[Tensor, "c 32 32"], image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """The image with these cells in the hole; every pixel outside of the hole is that of the image."""
        (rows, own_rows), (columns, own_columns) = self._parts(image)
        painted = stretched(cells[None], (self.side, self.side))[0][:, own_rows, own_columns]
        weight, part = self.weight(image)[rows, columns], image[:, rows, columns]
        result = image.clone()
        result[:, rows, columns] = torch.where(weight > 0, (part + weight * (painted - part)).clamp(0, 1), part)
        return result

    def weight(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "h w"]:
        """How much of what is painted a pixel of the image takes: 1 in the hole, which fades at its edge, else 0."""
        distance = (torch.arange(self.side, device=image.device) - (self.side - 1) / 2).abs().to(image)
        border = self.side * HOLE / SIDE / 2 - torch.maximum(distance[:, None], distance)
        (rows, own_rows), (columns, own_columns) = self._parts(image)
        weight = torch.zeros_like(image[0])
        weight[rows, columns] = (border / FEATHER).clamp(0, 1)[own_rows, own_columns]
        return weight

    def _parts(self, image: Float[Tensor, "c h w"]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the image that lie in the box, and of the box that lie in the image."""
        rows, columns = (
            (slice(max(start, 0), min(start + self.side, n)), slice(max(-start, 0), n - start))
            for start, n in zip((self.row, self.column), image.shape[1:], strict=True)
        )
        return rows, columns


def hole_of(cells: Float[Tensor, "n c 32 32"]) -> Float[Tensor, "1 1 32 32"]:
    """1 in the hole of a box, 0 elsewhere in it."""
    hole, rim = torch.zeros_like(cells[:1, :1]), (SIDE - HOLE) // 2
    hole[..., rim:-rim, rim:-rim] = 1
    return hole
