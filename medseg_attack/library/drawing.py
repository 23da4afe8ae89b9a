"""Pictures of what an attack did to one image."""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.library.arguments import checked
from medseg_attack.library.attacking import Attacked
from medseg_attack.report.figures import Panel, gallery_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@checked
def draw(result: Attacked, case: int = 0, *, classes: tuple[str, ...] = (), index: int | None = None) -> "Figure":
    """A figure of one image: before and after, with outlines of truth and prediction, the difference, and its cause.

    `figure.savefig("attack.pdf")` writes it; a notebook shows it.

    Args:
        result: what `attack` returned.
        case: number of the image in the batch, from 0.
        classes: those to draw; by default all that are scored.
        index: slice of a scan (b, c, slices, rows, columns); by default the one with most pixels of these classes.

    Raises:
        InputError: there is no such image, class or slice.
    """
    if not 0 <= case < len(result.images):
        raise InputError(f"expected a case from 0 to {len(result.images) - 1}, got {case}; choose one of them")
    names = result.batch.cases[case].classes
    known = [names[k] for k in result.scored]
    if unknown := [name for name in classes if name not in known]:
        raise InputError(f"expected classes among {', '.join(known)}, got {unknown[0]!r}; choose from them")
    chosen = [names.index(name) for name in classes or known]
    place = _place(result.batch.target[case, chosen], index)

    def shown(channels: Tensor) -> NDArray[Any]:
        return (channels if place is None else channels[:, place]).cpu().numpy()

    def panel(title: str, image: Tensor, truth: Tensor, masks: Tensor, before: Tensor, flow: Tensor | None) -> Panel:
        pixels, untouched, moved = (shown(each[case, :1])[0] for each in (image, clean, before))
        outlines = shown(truth[case, chosen]), shown(masks[case, chosen])
        arrows = None if flow is None else shown(flow[case, -2:])
        return Panel(title, pixels, *outlines, clean=untouched, before=moved, flow=arrows)

    clean = result.batch.image
    untouched = panel(result.batch.cases[case].id, clean, result.batch.target, result.clean, clean, None)
    attacked = panel(result.attack, result.images, result.truth, result.masks, result.before, result.flow)
    return gallery_figure(untouched, [attacked], [names[k] for k in chosen])


def _place(masks: Tensor, index: int | None) -> int | None:
    """The number of the slice of a scan that is drawn; None of an image that is a slice."""
    if masks.ndim == 3:
        if index is not None:
            raise InputError(f"expected no index for an image that is a slice, got {index}; leave it out")
        return None
    n_slices = masks.shape[1]
    if index is not None and not 0 <= index < n_slices:
        raise InputError(f"expected an index from 0 to {n_slices - 1}, got {index}; choose one of them")
    return int(masks.sum((0, 2, 3)).argmax()) if index is None else index
