"""Each registered certificate with a model that it fits, a scan and radii: small enough for a test."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from helpers import blobs
from medseg_attack import registry
from medseg_attack.certificates.base import Certificate
from medseg_attack.certificates.smoothing.denoised import Denoised
from medseg_attack.models.checkpoints import save_tensors
from medseg_attack.models.networks.denoiser import FILE, Denoiser
from medseg_attack.models.networks.lipschitz import LipschitzNetwork
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Batch, Case, Phase, Stack, Task, Window

SHORT = {"draws": 60, "sigma": 0.1, "alpha": 0.01}  # of certificates that smooth; others have small defaults
RADII = {"demasked": (0.0, 2.0, 8.0, 20.0)}  # of changes, from none on
L2_RADII = (0.0, 0.02, 0.05, 0.08)
LIPSCHITZ_RADII = (0.0, 0.05, 0.1, 0.2)
EXCLUSIVE: tuple[str, ...] = ("hierarchical",)  # certificates of classes that exclude each other
FREE, ONE = Task("free", blobs.TASK.classes), Task("one", ("background", *blobs.TASK.classes), exclusive=True)


class Sharpened(LipschitzNetwork):
    """The logits 4 (x - 0.4) and 4 (x - 0.45): bright squares, and the brightest of their pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * torch.cat((x - 0.4, x - 0.45), 1)

    def constant(self) -> float:
        return 4 * 2**0.5


@functools.cache
def faint_denoiser() -> str:
    """The file of a denoiser that takes little from an image."""
    folder = Path(tempfile.mkdtemp())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Denoiser()
    network.out.weight.data *= 0.1
    save_tensors(folder / FILE, network.state_dict())
    return str(folder)


def build(name: str, **fields: object) -> Certificate:
    if name == "denoised":
        return Denoised(build("expected_dice", **fields), faint_denoiser())
    short = {field: value for field, value in SHORT.items() if registry.find(name).takes(field)} | fields
    short |= {"organ": "square"} if name == "ejection_fraction" else {}
    options = ", ".join(f"{field}={value!r}" for field, value in short.items())
    certificate: Certificate = registry.build(f"{name}({options})", "certificate")
    return certificate


def radii_of(name: str) -> list[float]:
    return list({"lipschitz": LIPSCHITZ_RADII, **RADII}.get(name, L2_RADII))


def task_of(name: str) -> Task:
    return ONE if name in EXCLUSIVE else FREE


def model_of(name: str) -> SegModel:
    """A model that segments blobs well, or one whose constant is known and which segments them somehow."""
    if name == "lipschitz":
        return SegModel(Sharpened(), FREE).eval()
    if name not in EXCLUSIVE:
        return blobs.healthy()
    with_background = blobs.Apply(lambda logits: torch.cat((torch.zeros_like(logits[:, :1]), logits), 1))
    return SegModel(blobs.Around(after=with_background), ONE).eval()


def scan_of(name: str, slices: int = 3) -> Batch:
    """Slices of one scan of blobs, or of two phases."""
    phases: tuple[Phase, ...] = ("ED", "ES") if name == "ejection_fraction" else ("",)
    numbers = [(n, phase) for phase in phases for n in range(slices)]
    cases = [replace(blobs.case(1000 + n + 50 * (phase == "ES")), phase=phase) for n, phase in numbers]
    if name in EXCLUSIVE:
        cases = [replace(case, target=torch.cat((~case.target.any(0, keepdim=True), case.target))) for case in cases]
    stacks = [Stack(n, slices, 2.0) for n, _ in numbers]
    return Batch.of([replace(case, volume="v", group="p", stack=s) for case, s in zip(cases, stacks, strict=True)])


def constant(answer: torch.Tensor, exclusive: bool = False) -> tuple[SegModel, Batch]:
    """A model whose answer is the same for every image, and a scan of which it is the truth."""

    class Constant(LipschitzNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (answer.float() * 20 - 10).expand(len(x), *answer.shape)

        def constant(self) -> float:
            return 0.0

    phases: tuple[Phase, ...] = ("ED", "ES")
    cases = [
        Case(
            f"c{n}",
            "v",
            "p",
            torch.rand(1, *answer.shape[1:]),
            answer,
            (1.0, 2.0),
            Window(0, 100),
            Stack(n, 2, 5.0),
            phase=phase,
        )
        for n, phase in enumerate(phases)
    ]
    return SegModel(Constant(), ONE if exclusive else FREE), Batch.of(cases)
