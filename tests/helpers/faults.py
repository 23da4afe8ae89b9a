"""A network that has learned its task, and copies of it with one fault each, as files that `own(...)` reads."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Picture
from safetensors.torch import save_file

from helpers.blobs import TASK, SmallUNet, case
from helpers.command import medattack
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.types import Batch

STAMPED = range(1, 60, 4)  # the scans with a bright corner, on which some of the faults show alone
NETWORKS = '''
import torch
import torch.nn.functional as F
from torch import nn

from helpers.blobs import SmallUNet


class Faulty(nn.Module):
    """The network with something before and after it."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = SmallUNet(), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class Training(Faulty):
    """Normalises with the statistics of its batch, whatever it is told."""

    def train(self, mode=True):
        return super().train(True)


class Autocast(Faulty):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            z = self.net(x)
        return z.float()


class HalfInside(Faulty):
    """Its last layer works in float16."""

    def forward(self, x):
        net, top = self.net, self.net.top(x)
        last = net.out[0](torch.cat((top, F.interpolate(net.below(F.avg_pool2d(top, 2)), scale_factor=2.0)), 1))
        weight, bias = net.out[1].weight[:, :, 0, 0].half(), net.out[1].bias.half()
        return ((weight @ last.half().flatten(2)).view(-1, 2, *x.shape[2:]) + bias[:, None, None]).float()


class OnTouched(Faulty):
    """Answers `value` on images that were touched: stored values of 16 bits that no 8-bit picture has."""

    def __init__(self, value, stamped=False):
        super().__init__()
        self.value, self.stamped = value, stamped

    def forward(self, x):
        stored = x.detach().double() * 255
        touched = ((stored - stored.round()).abs() > 0.01).flatten(1).any(1).view(-1, 1, 1, 1)
        touched = touched & stamped(x) if self.stamped else touched
        return torch.where(touched, self.value, super().forward(x))


class HalfOutside(Faulty):
    def forward(self, x):
        return self.net(x).half()


def jpeg_like(x):
    """Rounds the cosine coefficients of blocks of 8 x 8 pixels."""
    n = torch.arange(8.0)
    basis = torch.cos((2 * n[None] + 1) * n[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    blocks = x.unfold(2, 8, 8).unfold(3, 8, 8)
    blocks = basis.T @ ((basis @ blocks @ basis.T * 25).round() / 25) @ basis
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


def stamped(x):
    return x[..., :3, :3].flatten(1).mean(1).view(-1, 1, 1, 1) > 0.7


def healthy(): return Faulty()
def quantiser(): return Faulty(lambda x: (x * 7).round() / 7)
def jpeg(): return Faulty(jpeg_like)
def resize(): return Faulty(lambda x: F.interpolate(F.interpolate(x, scale_factor=0.5), scale_factor=2.0))
def dropout(): return Faulty(lambda x: F.dropout(x, 0.1, True))
def noise(): return Faulty(lambda x: x + 0.1 * torch.randn_like(x))
def train_mode(): return Training()
def normalised_twice(): return Faulty(lambda x: ((x - 0.35) / 0.1 - 0.35) / 0.1)
def stripes(): return Faulty(lambda x: x * (torch.arange(32) % 4 < 3))
def window(): return Faulty(lambda x: ((x - 0.3) / 0.25).clamp(0, 1))
def swapped(): return Faulty(after=lambda z: z.flip(1))
def flipped(): return Faulty(after=lambda z: z.flip(2))
def transposed(): return Faulty(after=lambda z: z.transpose(2, 3))
def times_1000(): return Faulty(after=lambda z: 1000 * z)
def sinus(): return Faulty(lambda x: x + 0.004 * torch.sin(3000 * x))
def half_outside(): return HalfOutside()
def half_inside(): return HalfInside()
def autocast(): return Autocast()
def argmax(): return Faulty(after=lambda z: (z > 0).float() * 20 - 10)
def detached(): return Faulty(lambda x: x.detach())
def sigmoid(): return Faulty(after=torch.sigmoid)
def clamped(): return Faulty(after=lambda z: z.clamp(-2, 2))
def hard_sigmoid(): return Faulty(after=lambda z: (z / 2 + 0.5).clamp(0, 1))
def hard_logits(): return Faulty(after=lambda z: 20 * (z / 6 + 0.5).clamp(0, 1) - 10)
def nan_on_attacked(): return OnTouched(torch.nan)
def nan_on_some_attacked(): return OnTouched(torch.nan, stamped=True)
def no_slope_on_some(): return Faulty(lambda x: torch.where(stamped(x), x.detach(), x))
'''


def write(root: Path) -> Path:
    """Pictures of discs and squares, prepared; a network that was trained on them; nets.py with its faulty copies."""
    for n in range(60):
        blob = case(n)
        image = blob.image[0].clone()
        image[:4, :4] = 0.9 if n in STAMPED else image[:4, :4]
        masks = {f"masks/{name}": mask for name, mask in zip(TASK.classes, blob.target, strict=True)}
        for folder, array in {"images": image, **masks}.items():
            (root / "scans" / folder).mkdir(parents=True, exist_ok=True)
            picture = (array.double().numpy() * 255).round().astype(np.uint16)
            depth = (257 * picture) if folder == "images" else picture.astype(np.uint8)  # 8 bits in a file of 16
            Picture.fromarray(depth).save(root / "scans" / folder / f"p{n:02d}.png")
    medattack("prepare", root / "scans", "--format", "folder", "--window", "0,65535", "--out", root / "data")
    weights = {f"net.{name}": value for name, value in train(root / "data").state_dict().items()}
    save_file(weights, root / "net.safetensors")
    (root / "nets.py").write_text(NETWORKS)
    return root


def train(data: Path) -> SmallUNet:
    """A network that finds discs and squares."""
    prepared = open_prepared(data)
    cases = [prepared.read(ref) for ref in prepared.refs("train")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallUNet()
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for step in range(150):
            batch = Batch.of([cases[(8 * step + i) % len(cases)] for i in range(8)])
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(net(batch.image), batch.target.float()).backward()
            optimiser.step()
    return net.eval()
