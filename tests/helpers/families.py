"""Healthy networks of five families, trained in seconds on the blobs."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.blobs import TASK, case, healthy_net
from medseg_attack import registry
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Batch, Task

EXCLUSIVE = Task("blobs", ("background", *TASK.classes), exclusive=True)


def exclusive(batch: Batch) -> Batch:
    """The same cases with the background as a class of its own."""
    return Batch(batch.image, torch.cat((~batch.target.any(1, keepdim=True), batch.target), 1), batch.cases)


class Mixer(nn.Module):
    """A transformer on patches of 4 x 4 pixels, with a skip of convolutions: no normalisation over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 4, stride=4)
        self.places = nn.Parameter(torch.zeros(64, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.pixels = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.GELU(), nn.Conv2d(16, 16, 5, padding=2))
        self.out = nn.Sequential(nn.Conv2d(48, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        context = self.block(tokens).transpose(1, 2).unflatten(2, (8, 8))
        context = F.interpolate(context, scale_factor=4.0)
        logits: Tensor = self.out(torch.cat((self.pixels(x), context), 1))
        return logits


class Dilated(nn.Module):
    """Dilated convolutions with group normalisation, without any pooling."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
        for dilation in (1, 2, 4):
            layers += [nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=dilation, dilation=dilation)]
        self.net = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


def build(family: str) -> SegModel:
    """A network that was not trained yet."""
    match family:
        case "U-Net, batch normalisation":
            return SegModel(healthy_net(), TASK)
        case "transformer":
            return SegModel(Mixer(), TASK)
        case "dilated, group normalisation":
            return SegModel(Dilated(), TASK)
        case "residual, instance normalisation, softmax":
            spec = "monai(UNet(channels=(8, 16, 32), num_res_units=1), dims=2)"
        case _:
            spec = "monai(SegResNet, dims=2)"
    model: SegModel = registry.build(spec, "model")(EXCLUSIVE if "softmax" in family else TASK)
    return model


FAMILIES = (
    "U-Net, batch normalisation",
    "residual, instance normalisation, softmax",
    "SegResNet",
    "dilated, group normalisation",
    "transformer",
)


@functools.cache
def trained(family: str) -> SegModel:
    """A network that finds discs and squares; shared: leave it as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(family)
        if family == FAMILIES[0]:
            return model.eval()
        model.train()
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(150):
            batch = Batch.of([case(8 * (step % 40) + i) for i in range(8)])
            batch = exclusive(batch) if model.task.exclusive else batch
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(model(batch.image), batch.target.float()).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)
