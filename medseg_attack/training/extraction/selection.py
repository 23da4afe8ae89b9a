"""The choice of the queries: at random, or each as far as can be from those before."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.errors import InputError, plural
from medseg_attack.models.networks.convolutions import widest
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.training.augment import TrainingData, crc
from medseg_attack.training.extraction.options import UNITS, Extraction
from medseg_attack.types import CaseRef, Image


def refs_of(plan: Extraction, data: TrainingData, student: SegModel) -> list[CaseRef]:
    """The slices or scans of the proxy's training patients that are asked about, in the order of their choice.

    Args:
        student: before its training; `k_centre` compares queries by its deepest features.

    Raises:
        InputError: there are not so many.
    """
    refs = data.refs("train", 0, student.dims)
    if len(refs) < plan.queries:
        asked = plural(plan.queries, f"training {UNITS[student.dims]}")
        raise InputError(
            f"expected {asked} in {data.name} to ask about, got {len(refs)}; give --queries {len(refs)} or a larger "
            "--data"
        )
    order = torch.randperm(len(refs), generator=torch.Generator().manual_seed(crc(plan.seed, "queries")))
    if plan.selection == "random":
        return [refs[place] for place in order[: plan.queries].tolist()]
    device = next(student.parameters()).device
    features = torch.cat([deepest_features(student, data.read(ref).image[None].to(device)) for ref in refs])
    return [refs[place] for place in k_centres(features, plan.queries, int(order[0]))]


def deepest_features(model: SegModel, image: Image) -> Tensor:
    """The means of the channels of the last of the widest convolutions, (b, channels); over all windows."""
    layers = widest(model)
    if not layers:
        raise InputError("expected a student with convolutions for k_centre, got one without; take --selection random")
    kept: list[Tensor] = []
    hook = layers[-1].register_forward_hook(lambda layer, args, output: kept.append(output.flatten(2).mean(2)))
    with hook, frozen(model), torch.no_grad():
        model(image)
    return torch.stack(kept).mean(0)


def k_centres(features: Float[Tensor, "n d"], k: int, first: int) -> list[int]:
    """The places of k points, each the furthest from those before it (Gonzalez 1985): at most twice the least radius.

    >>> k_centres(torch.tensor([[0.0], [1.0], [10.0], [11.0], [5.5]]), 3, 0)
    [0, 3, 4]
    """
    places, distance = [first], torch.full((len(features),), math.inf, device=features.device)
    while len(places) < k:
        distance = torch.minimum(distance, (features - features[places[-1]]).square().sum(1))
        distance[places] = -1.0  # points that are alike are taken once each
        places.append(int(distance.argmax()))
    return places
