"""A model whose gradient by the image is finite, and which knows the cases where it was not."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg_attack.threat.binding import bind
from medseg_attack.types import Case, Image, LogOdds, Mask, Model, Setting, Task


class FiniteModel:
    """A model that gives 0 for each number of its gradient by the image that is NaN or infinite.

    The sign of NaN is 0, and a length of NaN spoils all pixels: without this an attack would stand still on such a
    case, or return NaN, by its own arithmetic.

    Attributes:
        cases: the samples of the images that it gets; () where they are not known.
        whole: the model that this one is a bound copy of; it knows these cases as well.
    """

    def __init__(self, model: Model, cases: Sequence[Case] = (), whole: "FiniteModel | None" = None) -> None:
        self.model, self.cases, self.whole = model, tuple(cases), whole
        self._wrong: list[tuple[tuple[Case, ...], Tensor]] = []  # on the device, so that no step waits for it

    @property
    def task(self) -> Task:
        return self.model.task

    def __call__(self, image: Image) -> LogOdds:
        if not (torch.is_grad_enabled() and image.requires_grad):
            return self.model(image)
        inner = image.view_as(image)  # a node of its own: the hook sees the gradient of this pass alone
        inner.register_hook(self._finite)  # type: ignore[no-untyped-call]
        return self.model(inner)

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)

    def bind(self, setting: Setting) -> "FiniteModel":
        """The model bound to a setting; its cases are known here as well."""
        return FiniteModel(bind(self.model, setting), setting.cases, self)

    @property
    def is_finite(self) -> bool:
        """Whether every gradient so far was finite."""
        return not any(bool(wrong.any()) for _, wrong in self._wrong)

    @property
    def wrong_cases(self) -> list[Case]:
        """The cases on which a gradient was not finite."""
        result: dict[Case, None] = {}
        for cases, wrong in self._wrong:
            flags = wrong.tolist() if len(wrong) == len(cases) else [bool(wrong.any())] * len(cases)
            result |= {case: None for case, flag in zip(cases, flags, strict=True) if flag}
        return list(result)

    def _finite(self, grad: Image) -> Image:
        finite = torch.isfinite(grad)
        self._note(self.cases, ~finite.flatten(1).all(1))
        return torch.where(finite, grad, 0.0)

    def _note(self, cases: tuple[Case, ...], wrong: Tensor) -> None:
        if self._wrong and self._wrong[-1][0] == cases and len(self._wrong[-1][1]) == len(wrong):
            wrong = self._wrong.pop()[1] | wrong
        self._wrong.append((cases, wrong))
        if self.whole is not None:
            self.whole._note(cases, wrong)
