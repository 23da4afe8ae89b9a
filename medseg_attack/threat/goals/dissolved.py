"""The goal of an organ that is gone, with what surrounds it in its place."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medseg_attack.registry import register
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Mask, Setting


@register("dissolve", kind="goal")
@dataclass(frozen=True)
class Dissolve(Goal):
    """The truth with each pixel of an organ as the nearest pixel outside of it (Metzen et al., arXiv 1704.05712).

    Where classes exclude each other, neighbours grow into the hole; `erase` leaves background there. An organ without
    an outside is erased.

    Attributes:
        organ: its name; "" is the first organ of the task.

    Raises:
        InputError: the task has no such organ.
    """

    organ: str = ""

    def prepare(self, setting: Setting) -> None:
        organ_classes(setting.task, self.organ, "dissolve")

    def wanted(self, truth: Mask, setting: Setting) -> Mask:
        k, wanted = organ_classes(setting.task, self.organ, "dissolve")[0], truth.clone()
        known = len(setting.cases) == len(truth)
        for n in range(len(truth)):
            organ = truth[n, k].cpu().numpy()
            wanted[n, k] = False
            if not organ.any() or organ.all():
                continue
            spacing_mm = setting.cases[n].spacing_mm if known else (1.0,) * organ.ndim
            places = ndimage.distance_transform_edt(
                organ, sampling=spacing_mm, return_distances=False, return_indices=True
            )
            source = torch.from_numpy(np.ravel_multi_index([place[organ] for place in places], organ.shape))
            wanted[n, :, truth[n, k]] = wanted[n].flatten(1)[:, source.to(truth.device)]
        return wanted
