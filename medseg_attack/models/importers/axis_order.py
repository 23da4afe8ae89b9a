"""Networks that were trained on another order of a scan's axes than slices, rows, columns."""

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg_attack.errors import InputError

LETTERS = "zyx"  # slices, rows and columns, as the scan was prepared


class Reoriented(nn.Module):
    """A network that gets the scan's axes in another order, some of them reversed; its output is turned back.

    Attributes:
        order: the scan's spatial axes, from 0, in the network's order.
        flips: those of them that are reversed.
    """

    def __init__(self, net: nn.Module, order: tuple[int, ...], flips: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.net, self.order, self.flips = net, order, flips

    @property
    def as_prepared(self) -> bool:
        """Whether the network's axes are those of the scan."""
        return list(self.order) == sorted(self.order) and not self.flips

    @property
    def axes(self) -> str:
        """The order of axes as `reorient` takes it.

        >>> reorient(nn.Identity(), "-x-yz", 3).axes
        '-x-yz'
        """
        return "".join("-" * (axis in self.flips) + LETTERS[-len(self.order) :][axis] for axis in self.order)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *t"]:
        axes = [axis + 2 for axis in self.flips]
        order = [0, 1, *(axis + 2 for axis in self.order)]
        output: Tensor = self.net(x.flip(axes).permute(order).contiguous())
        return output.permute(torch.tensor(order).argsort().tolist()).flip(axes)

    def in_scan_order(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Reorders sides from the network's order of axes to the scan's.

        >>> Reoriented(nn.Identity(), (2, 1, 0)).in_scan_order((16, 12, 8))
        (8, 12, 16)
        """
        return tuple(side for _, side in sorted(zip(self.order, sides, strict=True)))


def reorient(net: nn.Module, axes: str, dims: int) -> Reoriented:
    """The network with the order of axes that it was trained on.

    Args:
        axes: a text such as "xyz" or "-x-yz"; `-` reverses an axis.
        dims: number of spatial axes, 2 or 3.

    Raises:
        InputError: `axes` does not name each axis once.
    """
    known = LETTERS[-dims:]
    signed = re.findall("-?[xyz]", axes)
    letters = [axis[-1] for axis in signed]
    if "".join(signed) != axes or sorted(letters) != sorted(known):
        raise InputError(
            f"expected axes of each of {', '.join(known)} once, a minus before what is reversed, got {axes!r}; "
            f"write {known!r} (as prepared), {known[::-1]!r} or {'-x-yz'[: 2 * dims]!r}"
        )
    order = tuple(known.index(letter) for letter in letters)
    return Reoriented(net, order, tuple(known.index(axis[1]) for axis in signed if axis.startswith("-")))
