"""A network that was trained on another order of a scan's axes than that of slices, rows, columns."""

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg_attack.errors import InputError

LETTERS = "zyx"  # slices, rows and columns, as the scan was prepared


class Reoriented(nn.Module):
    """A network shown the scan's axes in another order, some of them reversed; its answer is turned back.

    Attributes:
        order: the scan's spatial axes, from 0, in the network's order.
        flips: those of them that are reversed.
    """

    def __init__(self, net: nn.Module, order: tuple[int, ...], flips: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.net, self.order, self.flips = net, order, flips

    @property
    def as_prepared(self) -> bool:
        return list(self.order) == sorted(self.order) and not self.flips

    @property
    def black_box(self) -> bool:
        return bool(getattr(self.net, "black_box", False))

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *t"]:
        axes = [axis + 2 for axis in self.flips]
        there = [0, 1, *(axis + 2 for axis in self.order)]
        answer: Tensor = self.net(x.flip(axes).permute(there).contiguous())
        return answer.permute(torch.tensor(there).argsort().tolist()).flip(axes)

    def of_scan(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Sides in the network's order, in the scan's.

        >>> Reoriented(nn.Identity(), (2, 1, 0)).of_scan((16, 12, 8))
        (8, 12, 16)
        """
        return tuple(side for _, side in sorted(zip(self.order, sides, strict=True)))


def reorient(net: nn.Module, axes: str, dims: int) -> Reoriented:
    """`net` with the axes that a text such as "xyz" or "-x-yz" gives it; `-` reverses an axis.

    Raises:
        InputError: it does not name each axis once.
    """
    known = LETTERS[-dims:]
    found = re.findall("-?[xyz]", axes)
    letters = [one[-1] for one in found]
    if "".join(found) != axes or sorted(letters) != sorted(known):
        raise InputError(
            f"expected axes of each of {', '.join(known)} once, a minus before what is reversed, got {axes!r}; "
            f"write {known!r} (as prepared), {known[::-1]!r} or {'-x-yz'[: 2 * dims]!r}"
        )
    order = tuple(known.index(letter) for letter in letters)
    return Reoriented(net, order, tuple(known.index(one[1]) for one in found if one.startswith("-")))
