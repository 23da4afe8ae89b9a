"""Promptable networks that need no training, in a file as a user would write it: the prompt is a second channel."""

from pathlib import Path

NETWORKS = '''
import torch
from torch import nn
from torch.nn import functional as F


def inside(boxes, x):
    """1 in each box, (b, k, h, w), and falling to 0 within a pixel of its sides."""
    rows = torch.arange(x.shape[2]).to(x).view(1, 1, -1, 1)
    columns = torch.arange(x.shape[3]).to(x).view(1, 1, 1, -1)
    x0, y0, x1, y1 = (side[..., None, None] for side in boxes.unbind(-1))
    depth = torch.minimum(torch.minimum(columns - x0, x1 - columns), torch.minimum(rows - y0, y1 - rows))
    return (depth + 1).clamp(0, 1)


class Promptable(nn.Module):
    """A small U-Net: two channels, the image and one organ's prompt, become a map of logits."""

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2))
        self.mix = nn.Conv2d(width + 2, 1, 3, padding=1)

    def maps(self, x, prompt):
        b, k = prompt.shape[:2]
        deep = F.interpolate(self.encoder(x), x.shape[2:])
        both = torch.cat((deep, x), 1).repeat_interleave(k, 0)
        z = self.mix(torch.cat((both, prompt.reshape(b * k, 1, *x.shape[2:])), 1)).view(b, k, *x.shape[2:])
        return z + 30 * (x - 0.4) - 20 * (1 - prompt)


class Box(Promptable):
    """The organ is what is brighter than 0.4 of the window in its box, more or less."""

    def forward(self, images, boxes):
        return self.maps(images, inside(boxes, images))


class Point(Promptable):
    """The organ is what is brighter than 0.4 of the window within 15 pixels of one of its points, more or less."""

    def forward(self, images, points, labels):
        corners = torch.cat((points - 15, points + 15), -1)
        discs = torch.stack([inside(corners[:, :, n], images) * (labels[:, :, n, None, None] > 0)
                             for n in range(labels.shape[2])])
        return self.maps(images, discs.amax(0))


class Plain(Box):
    """A network without prompts: the box is the whole slice."""

    def forward(self, x):
        z = self.maps(x, torch.ones_like(x))
        return torch.cat((0 * z, z), 1)


class Grey(Box):
    """Takes images of any number of channels, as normalised for photographs."""

    def forward(self, images, boxes):
        return super().forward(images[:, :1] * 0.2 + 0.4, boxes)


class TwoMaps(Box):
    """Answers one map more than there are prompts."""

    def forward(self, images, boxes):
        z = super().forward(images, boxes)
        return torch.cat((z, z), 1)
'''


def write_promptable(root: Path) -> Path:
    """The file of the networks."""
    path = root / "promptable.py"
    path.write_text(NETWORKS)
    return path
