"""A small network that takes Gaussian noise of a known size out of images, and its file."""

import functools
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import fingerprint, load_tensors
from medseg_attack.types import Image

CHANNELS = (16, 32, 64)
FILE = "denoiser.safetensors"  # in the folder of a training


class Denoiser(nn.Module):
    """A U-Net of one image channel and one that holds the size of the noise: `x - sigma * noise(x, sigma)`.

    So nothing is taken from an image without noise. Nothing is normalised, and edges are repeated: a sample depends on
    itself alone, and a constant image stays one.
    """

    def __init__(self) -> None:
        super().__init__()
        top, middle, bottom = CHANNELS
        self.down = nn.ModuleList([_block(2, top), _block(top, middle), _block(middle, bottom)])
        self.up = nn.ModuleList([_block(bottom + middle, middle), _block(middle + top, top)])
        self.out = nn.Conv2d(top, 1, 1)

    def forward(self, image: Float[Tensor, "b 1 h w"], sigma: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 1 h w"]:
        rows, columns = image.shape[2:]
        x = functional.pad(torch.cat((image, sigma.expand_as(image)), 1), (0, -columns % 4, 0, -rows % 4), "replicate")
        levels: list[Tensor] = []
        for block in self.down:
            x = block(x if not levels else functional.avg_pool2d(x, 2))
            levels.append(x)
        for block, skip in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat((functional.interpolate(x, scale_factor=2.0), skip), 1))
        noise: Tensor = self.out(x)[..., :rows, :columns]
        return image - sigma * noise


def _block(inside: int, outside: int) -> nn.Sequential:
    convs = [nn.Conv2d(n, outside, 3, padding=1, padding_mode="replicate") for n in (inside, outside)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU())


@functools.lru_cache(maxsize=8)
def load_denoiser(file: str) -> Denoiser:
    """The network of a file or folder that `medattack train --denoiser` wrote, with fixed weights.

    Raises:
        InputError: there is none, or it holds something else.
    """
    if not file:
        raise InputError(
            "expected the folder of a denoiser, got none; train one by 'medattack train --denoiser --out FOLDER' and "
            "write file='FOLDER'"
        )
    path = Path(file) / FILE if Path(file).is_dir() else Path(file)
    network = Denoiser()
    try:
        network.load_state_dict(load_tensors(path), strict=True)
    except RuntimeError as error:
        raise InputError(
            f"expected the weights of a denoiser in {path}, got others; give the folder that 'medattack train "
            "--denoiser' wrote"
        ) from error
    return network.eval().requires_grad_(False)


def denoised(network: nn.Module, image: Image, sigma: float) -> Image:
    """The images without noise of standard deviation `sigma`, cut to [0, 1]: each channel, and each slice of a scan.

    It is computed in the precision of the image.
    """
    if image.ndim == 5:
        slices = image.movedim(2, 1).flatten(0, 1)
        return denoised(network, slices, sigma).view(image.movedim(2, 1).shape).movedim(1, 2)
    weights = {name: value.to(image) for name, value in network.state_dict().items()}
    planes = image.reshape(-1, 1, *image.shape[2:])
    size = torch.full((len(planes), 1, 1, 1), sigma, dtype=image.dtype, device=image.device)
    result: Tensor = functional_call(network, weights, (planes, size))
    return result.view(image.shape).clamp(0, 1)


def denoiser_hash(file: str) -> str:
    """A hash of a denoiser's weights."""
    return fingerprint(load_denoiser(file))
