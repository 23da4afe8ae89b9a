"""Holes that are filled as smoothly as their edges allow, and patches that are blended in without a seam."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import linalg

LARGEST = 20_000  # unknowns that are solved for directly; above that by conjugate gradients

T = TypeVar("T", bound=np.generic)
Plane = NDArray[np.float64]
Hole = NDArray[np.bool_]
_ENDS = (slice(None, -1), slice(1, None))
SMOOTH = 2.0  # standard deviation in pixels of what is not fine
CUT = 3.0  # deviations beyond which a value is an edge, and no texture
RING = 6  # width in pixels of the ring whose noise and contrast are copied


def filled(image: Plane, hole: Hole) -> Plane:
    """The image with the harmonic function in the hole whose values at its edge are the image's.

    Laplace's equation with the image around the hole as boundary values; the image's own border lets no flux through.
    A linear ramp is restored exactly. A hole without an edge stays as it is.
    """
    if not hole.any() or hole.all():
        return image.copy()
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(hole.sum())
    degree, right = np.zeros(hole.sum()), np.zeros(hole.sum())
    rows, columns = [], []
    for axis in range(hole.ndim):
        low, high = (tuple(part if n == axis else slice(None) for n in range(hole.ndim)) for part in _ENDS)
        for own, other in ((low, high), (high, low)):
            inside = hole[own]
            at = number[own][inside]
            np.add.at(degree, at, 1)
            neighbour = number[other][inside]
            known = neighbour < 0
            np.add.at(right, at[known], image[other][inside][known])
            rows.append(at[~known])
            columns.append(neighbour[~known])
    size = len(degree)
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.csc_matrix((-np.ones(len(row)), (row, column)), shape=(size, size)) + sparse.diags(degree)
    solution = linalg.spsolve(matrix.tocsc(), right) if size <= LARGEST else linalg.cg(matrix, right, rtol=1e-10)[0]
    result = image.copy()
    result[hole] = solution
    return result


def blended(image: Plane, patch: Plane, hole: Hole) -> Plane:
    """The image with the patch's details in the hole, and the image's values at its edge (Perez et al. 2003).

    Poisson's equation: the result is the patch plus a harmonic function. The image's own patch changes nothing.
    """
    return np.where(hole, patch + filled(image - patch, hole), image)


def ring_around(hole: Hole, width: int) -> Hole:
    """The pixels at most so many pixels outside of the hole."""
    return ndimage.binary_dilation(hole, iterations=width) & ~hole if hole.any() else hole


def texture(image: Plane, hole: Hole, shift: tuple[int, ...]) -> Plane:
    """Fine detail of the image, so far away, on the pixels of the hole; as strong as in a ring around it.

    Args:
        shift: pixels along each axis from where it is taken, as `shifted` says; what would come from the hole itself
            is 0.
    """
    fine = image - ndimage.gaussian_filter(image, SMOOTH)
    moved = shifted(np.where(hole, 0.0, fine), shift)
    around, own = _spread(fine[ring_around(hole, RING)]), _spread(moved[hole & ~shifted(hole, shift)])
    scale = around / own if own > 0 else 0.0
    return np.where(hole, scale * moved.clip(-CUT * own, CUT * own), 0.0)


def shifted(plane: NDArray[T], shift: tuple[int, ...]) -> NDArray[T]:
    """The image moved so that a pixel shows what lies so many pixels away; beyond its border it is mirrored."""
    moved: NDArray[T] = ndimage.shift(plane, [-n for n in shift], order=0, mode="mirror")
    return moved


def _spread(values: Plane) -> float:
    """The standard deviation of normal values, which edges among them hardly change."""
    return float(np.median(np.abs(values)) / 0.6744897501960817) if values.size else 0.0
