"""Certificates on tensors, by the function of the command line."""

from collections.abc import Sequence
from itertools import groupby

import pandas as pd
import torch

from medseg_attack import registry
from medseg_attack.evaluation.certifying import certified
from medseg_attack.library.arguments import checked
from medseg_attack.library.inputs import batch_of
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.runtime import deterministic
from medseg_attack.types import Batch, Case, Image, Mask


@checked
def certify(
    model: SegModel,
    images: Image,
    masks: Mask,
    certificate: str = "expected_dice",
    *,
    radii: Sequence[float] = (),
    check: bool = True,
    cases: Sequence[Case] | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Bounds that no change of a scan within a radius takes the model below: the rows of `medattack certify --csv`.

    Args:
        model: from `wrap` or `load`, in eval mode.
        images: float32 (b, c, rows, columns) or (b, c, slices, rows, columns), in [0, 1].
        masks: the truth, bool (b, k, *s), one channel per class of the model.
        certificate: a spec such as "expected_dice(sigma=0.1, draws=500)"; `names("certificate")` lists them.
        radii: sizes of the change of a whole scan, as the certificate measures it: most do in the L2 norm, where the
            window is 0 to 1; by default those of the certificate.
        check: whether an attack within each radius tries to refute the bounds.
        cases: what is known of the images beyond their pixels: slices of one volume, next to each other, are a scan.
            Without them each image is a scan of its own.
        seed: of the draws.
        batch_size: images in a pass.

    Returns:
        A row per scan, radius and class: volume, group, cls, radius, clean, value, low, high ...; `refuted` is "" where
        no attack refuted the bound.

    Raises:
        InputError: model, images, masks and cases do not fit each other, there is no such certificate, or a radius is
            beyond what it can show.

    Examples:
        >>> import torch, medseg_attack as ma
        >>> net = torch.nn.Conv2d(1, 1, kernel_size=1).eval()
        >>> _ = torch.nn.init.constant_(net.weight, 8.0), torch.nn.init.constant_(net.bias, -4.0)
        >>> model = ma.wrap(net, classes=["lesion"], exclusive=False)  # all that is brighter than 1/2
        >>> masks = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        >>> masks[:, :, 4:12, 4:12] = True
        >>> bounds = ma.certify(model, 0.3 + 0.4 * masks, masks, "expected_dice(sigma=0.1, draws=50)", radii=[0.01])
        >>> bool(0 < bounds.low.iloc[0] < bounds.value.iloc[0] <= 1)
        True
    """
    batch = batch_of(model, images, masks, cases)
    method = registry.build(certificate, "certificate")
    method.require_model(model)
    chosen = method.radii(radii)
    scans = []
    for _, numbers in groupby(range(len(batch.cases)), key=lambda n: batch.cases[n].volume):
        places = list(numbers)
        scans.append(Batch(images[places], masks[places], tuple(batch.cases[n] for n in places)))
    for scan in scans:
        for radius in chosen:
            method.require(radius, model.task, [tuple(case.image.shape[1:]) for case in scan.cases])
    rows = []
    with frozen(model), deterministic(torch.device(images.device)):
        for scan in scans:
            checked = check and not model.black_box
            rows += certified(method, model, scan, chosen, seed=seed, batch_size=batch_size, checked=checked)[0]
    return pd.DataFrame(rows)
