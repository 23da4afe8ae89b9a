"""Natural corruptions on a ladder of five severities: what happens without an attacker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError, listed
from medseg_attack.numerics import corruptions as natural
from medseg_attack.registry import register, shown
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, PerSample

EACH = "each"  # in place of a kind: all kinds of the modality
STEPS = 5  # severities of a ladder


@register("severity", kind="ball")
@dataclass(frozen=True)
class Severity(Ball):
    """Any change: a natural corruption has no norm, and the size of one is its severity.

    Attributes:
        eps: the severity, from 0 (no change) to 5; between two whole numbers parameters are interpolated.
    """

    unit = "severity of 5"
    restrictable = False
    budgets = "[0, 5]"

    eps: float = 3.0

    def step(self, grad: Image, image: Image) -> Image:
        return torch.zeros_like(image)

    def project(self, x: Image, x0: Image) -> Image:
        return x.clamp(0, 1) if self.eps > 0 else x0.clone()

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return x0.clone()

    def size(self, x: Image, x0: Image) -> PerSample:
        return self.eps * (x != x0).flatten(1).any(1).to(x)


@dataclass(frozen=True)
class Ladder:
    """A corruption and its parameters.

    Attributes:
        corrupt: the function.
        levels: its parameters at severity 0, which change nothing, and at 1 to 5.
    """

    corrupt: natural.Corruption
    levels: tuple[tuple[float, ...], ...]

    def at(self, severity: float) -> tuple[float, ...]:
        """The parameters at a severity, linear between whole ones."""
        return tuple(float(np.interp(severity, range(STEPS + 1), column)) for column in zip(*self.levels, strict=True))


def _ladder(corrupt: natural.Corruption, neutral: float, *levels: float) -> Ladder:
    return Ladder(corrupt, tuple((level,) for level in (neutral, *levels)))


def _linear(corrupt: natural.Corruption, neutral: float, last: float) -> Ladder:
    """Five equal steps, as ROOD-MRI has them."""
    return _ladder(corrupt, neutral, *(neutral + (last - neutral) * n / STEPS for n in range(1, STEPS + 1)))


# Kinds and ranges are published: those of CT, ultrasound and photographs are MedMNIST-C's (arXiv 2406.17536) for
# organamnist, breastmnist and dermamnist, the first eight of MRI ROOD-MRI's (arXiv 2203.06060); MRI has seven of CT's
# beside them. Kinds that move anatomy are left out (`affine` and `deformation` do), and so are marks of a dermatoscope.
CT: Mapping[str, Ladder] = {
    "pixelate": _ladder(natural.pixelate, 1, 0.7, 0.6, 0.5, 0.4, 0.35),
    "jpeg_compression": _ladder(natural.jpeg_compression, 95, 50, 30, 15, 10, 7),
    "gaussian_noise": _ladder(natural.gaussian_noise, 0, 0.04, 0.08, 0.12, 0.16, 0.2),
    "speckle_noise": _ladder(natural.speckle_noise, 0, 0.05, 0.1, 0.2, 0.3, 0.4),
    "impulse_noise": _ladder(natural.impulse_noise, 0, 0.01, 0.02, 0.03, 0.05, 0.08),
    "shot_noise": _ladder(natural.shot_noise, 1e-6, 1 / 200, 1 / 100, 1 / 50, 1 / 25, 1 / 15),
    "gaussian_blur": _ladder(natural.gaussian_blur, 0, 2.0, 2.3, 2.6, 2.9, 3.5),
    "brightness_up": _ladder(natural.brightness, 1, 1.2, 1.3, 1.4, 1.5, 1.6),
    "brightness_down": _ladder(natural.brightness, 1, 0.8, 0.75, 0.7, 0.65, 0.6),
    "contrast_up": _ladder(natural.contrast, 1, 1.3, 1.4, 1.6, 1.7, 1.8),
    "contrast_down": _ladder(natural.contrast, 1, 0.8, 0.7, 0.6, 0.55, 0.5),
    "gamma_up": _ladder(natural.gamma, 1, 1.3, 1.4, 1.6, 1.8, 2.0),
    "gamma_down": _ladder(natural.gamma, 1, 0.9, 0.8, 0.7, 0.6, 0.4),
}
COMMON = ["pixelate", "jpeg_compression", "gaussian_noise", "brightness_up", "brightness_down"]
COMMON += ["contrast_up", "contrast_down"]
MRI: Mapping[str, Ladder] = {
    "rician_noise": _linear(natural.rician_noise, 0, 0.8),
    "bias_field": _linear(natural.bias_field, 0, 1.5),
    "ghosting": Ladder(natural.ghosting, ((3, 0.0), (3, 0.5), (5, 1.0), (7, 1.5), (9, 2.0), (11, 2.5))),
    "motion": Ladder(natural.motion, ((0, 0, 2), (1, 2, 2), (2, 4, 4), (3, 6, 6), (4, 8, 8), (5, 10, 10))),
    "anisotropy": _linear(natural.anisotropy, 1, 10),
    "smoothing": _linear(natural.gaussian_blur, 0, 4),
    "contrast_compression": _linear(natural.gamma, 1, 0.3),
    "contrast_expansion": _linear(natural.gamma, 1, 3),
} | {kind: CT[kind] for kind in COMMON}
ULTRASOUND: Mapping[str, Ladder] = {
    "pixelate": _ladder(natural.pixelate, 1, 0.3, 0.25, 0.2, 0.15, 0.1),
    "jpeg_compression": CT["jpeg_compression"],
    "speckle_noise": _ladder(natural.speckle_noise, 0, 0.1, 0.15, 0.2, 0.25, 0.3),
    "motion_blur": _ladder(natural.motion_blur, 0, 5, 7, 9, 13, 17),
    "brightness_up": _ladder(natural.brightness, 1, 1.4, 1.5, 1.6, 1.8, 2.0),
    "brightness_down": _ladder(natural.brightness, 1, 0.55, 0.5, 0.45, 0.4, 0.3),
    "contrast_down": _ladder(natural.contrast, 1, 0.9, 0.8, 0.7, 0.6, 0.4),
}
RGB: Mapping[str, Ladder] = {
    "pixelate": _ladder(natural.pixelate, 1, 0.7, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": _ladder(natural.jpeg_compression, 95, 30, 20, 15, 10, 7),
    "gaussian_noise": _ladder(natural.gaussian_noise, 0, 0.04, 0.08, 0.12, 0.18, 0.26),
    "speckle_noise": _ladder(natural.speckle_noise, 0, 0.05, 0.15, 0.2, 0.35, 0.45),
    "impulse_noise": _ladder(natural.impulse_noise, 0, 0.01, 0.03, 0.06, 0.09, 0.17),
    "shot_noise": _ladder(natural.shot_noise, 1e-6, 1 / 60, 1 / 25, 1 / 18, 1 / 10, 1 / 5),
    "defocus_blur": _ladder(natural.defocus_blur, 0, 4, 5, 6, 7, 8),
    "motion_blur": _ladder(natural.motion_blur, 0, 5, 8, 10, 12, 15),
    "zoom_blur": _ladder(natural.zoom_blur, 0, 0.1, 0.15, 0.2, 0.25, 0.3),
    "brightness_up": _ladder(natural.brightness, 1, 1.1, 1.2, 1.3, 1.4, 1.5),
    "brightness_down": _ladder(natural.brightness, 1, 0.9, 0.8, 0.7, 0.6, 0.5),
    "contrast_up": _ladder(natural.contrast, 1, 1.1, 1.2, 1.3, 1.4, 1.6),
    "contrast_down": _ladder(natural.contrast, 1, 0.8, 0.7, 0.6, 0.5, 0.4),
}
LADDERS: Mapping[str, Mapping[str, Ladder]] = {"mri": MRI, "ct": CT, "ultrasound": ULTRASOUND, "rgb": RGB}


@register(
    "corruption",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="no model",
    paper="Di Salvo et al., MedMNIST-C, arXiv 2406.17536; Boone et al., ROOD-MRI, arXiv 2203.06060",
    reaches="its ball",
)
@dataclass(frozen=True)
class Corruption:
    """Natural corruptions of a modality, drawn by seed: noise, blur, artefacts, contrast (MedMNIST-C, ROOD-MRI).

    It is a control: nothing is searched. In a study with `each` kind every kind is a run of its own; `compare` puts
    them into one table. Called by itself, `each` draws a kind for every image.

    Attributes:
        modality: mri, ct, ultrasound or rgb; it says which kinds there are, and their parameters.
        kind: one of them, or each.
        ball: severity(3); `--eps` sets the severity, from 0 to 5.

    Raises:
        InputError: there is no such modality or kind.
    """

    modality: str = "mri"
    kind: str = EACH
    ball: Ball = Severity()

    def __post_init__(self) -> None:
        if self.modality not in LADDERS:
            raise InputError(
                f"expected a modality of {', '.join(LADDERS)} for corruption, got {self.modality!r}; choose from them"
            )
        if self.kind not in (EACH, *self._ladders):
            raise InputError(
                f"expected a corruption of {self.modality}, got {self.kind!r}; choose from "
                f"{listed([EACH, *self._ladders], most=len(self._ladders) + 1)}"
            )
        if not isinstance(self.ball, Severity):
            raise InputError(f"expected a severity for corruption, got {shown(self.ball)}; write severity(3)")

    @property
    def _ladders(self) -> Mapping[str, Ladder]:
        return LADDERS[self.modality]

    def members(self) -> "tuple[Corruption, ...]":
        """The attacks that this one stands for in a study."""
        return tuple(replace(self, kind=kind) for kind in (self._ladders if self.kind == EACH else [self.kind]))

    def control(self) -> "Corruption":
        """Itself: it is a control already."""
        return self

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        corrupted = torch.stack([self._corrupted(one, seed) for one, seed in zip(image, seeds, strict=True)])
        return judge(model, self.ball, self.ball.project(corrupted, image), image, target)

    def _corrupted(self, image: Tensor, seed: int) -> Tensor:
        members = self.members()
        kind = members[crc32(f"{seed}/kind".encode()) % len(members)].kind
        ladder = self._ladders[kind]
        rng = torch.Generator().manual_seed(crc32(f"{seed}/{kind}".encode()))
        return ladder.corrupt(image, ladder.at(self.ball.eps), rng)
