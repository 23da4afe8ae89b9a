"""Denoised smoothing: a certificate of a model behind a denoiser."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from medseg_attack.certificates.base import Bound, Certificate
from medseg_attack.certificates.smoothing.base import Smoothing
from medseg_attack.certificates.smoothing.expected_dice import ExpectedDice
from medseg_attack.errors import InputError
from medseg_attack.models.networks.denoiser import denoised, denoiser_hash, load_denoiser
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register, spec
from medseg_attack.types import AroundModel, Batch, Image, LogOdds, Model, Task


@dataclass(frozen=True, eq=False)
class Cleaned(AroundModel):
    """A model behind a denoiser."""

    model: Model
    network: nn.Module
    sigma: float

    def __call__(self, image: Image) -> LogOdds:
        return self.model(denoised(self.network, image, self.sigma))


@register("denoised", kind="certificate", paper="Salman et al., NeurIPS 2020; Laousy et al., 2023")
@dataclass(frozen=True)
class Denoised(Certificate):
    """A certificate by smoothing of a model that a denoiser takes the noise from first.

    Salman et al. (arXiv 2003.01908), for medical masks Laousy et al. (arXiv 2310.03664). The denoiser is a part of the
    function that is smoothed, so that the bound is that of the inner certificate, for the denoiser and the model
    together. The model need not be trained with noise.

    Attributes:
        certificate: by smoothing, such as `expected_dice`; its sigma is the noise that is taken out.
        file: folder of a denoiser that `medattack train --denoiser` wrote.

    Raises:
        InputError: the certificate is not one by smoothing.
    """

    certificate: Any = ExpectedDice()  # noqa: RUF009 - a frozen value
    file: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.certificate, Smoothing):
            raise InputError(
                f"expected a certificate by smoothing for denoised, got {spec(self.certificate)}; take expected_dice"
            )

    @property
    def inner(self) -> Smoothing:
        inner: Smoothing = self.certificate
        return inner

    @property
    def quantity(self) -> str:  # type: ignore[override]
        return self.inner.quantity

    @property
    def promise(self) -> str:  # type: ignore[override]
        return f"{self.inner.promise} All of it is of the model behind the denoiser."

    @property
    def needs_phases(self) -> bool:  # type: ignore[override]
        return self.inner.needs_phases

    @property
    def weights_hash(self) -> str:
        return denoiser_hash(self.file)

    @property
    def default_radii(self) -> tuple[float, ...]:
        return self.inner.default_radii

    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        return self.inner.passes(shape, radii)

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        self.inner.require(radius, task, shapes)

    def require_model(self, model: SegModel) -> None:
        self.inner.require_model(model)

    def _cleaned(self, model: Model, scan: Batch) -> Cleaned:
        return Cleaned(model, load_denoiser(self.file).to(scan.image.device), self.inner.sigma)

    def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Any:
        return self.inner.answers(self._cleaned(model, scan), model, scan, seed, batch_size)

    def bounds(self, observed: Any, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        return self.inner.bounds(observed, scan, model, radii)

    def certain(self, observed: Any, radius: float, model: Model) -> Bool[Tensor, "b *s"] | None:
        return self.inner.certain(observed, radius, model)

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        return self.inner.attacked(self._cleaned(model, scan), scan, radius, seed)

    def refuted(self, observed: Any, elsewhere: Any, scan: Batch, model: Model, radius: float) -> str:
        return self.inner.refuted(observed, elsewhere, scan, model, radius)
