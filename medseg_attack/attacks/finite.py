"""A model that is finite in its answers and gradients, and which knows the cases where the network was not."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medseg_attack.errors import NoGradientError
from medseg_attack.numerics.log_odds import is_finite, without_nan
from medseg_attack.threat.binding import bind
from medseg_attack.types import AroundModel, Case, Image, LogOdds, Model, Setting


@dataclass(eq=False)
class Tally:
    """Cases on which something held in any pass; the flags stay on the device, so that no step waits for them."""

    _flags: list[tuple[tuple[Case, ...], Tensor]] = field(default_factory=list)

    def note(self, cases: tuple[Case, ...], flags: Tensor) -> None:
        """Adds the flags of a pass, (samples,).

        Args:
            cases: the samples; if their number is another one, such as 0, each flag is about all of them.
        """
        if self._flags and self._flags[-1][0] == cases and len(self._flags[-1][1]) == len(flags):
            flags = self._flags.pop()[1] | flags
        self._flags.append((cases, flags))

    def clear(self) -> None:
        """Takes all passes out."""
        self._flags.clear()

    def __bool__(self) -> bool:
        """Whether it held in any pass, also of cases that are not known."""
        return any(bool(flags.any()) for _, flags in self._flags)

    @property
    def by_case(self) -> dict[Case, bool]:
        """Whether it held in any pass, by case."""
        result: dict[Case, bool] = {}
        for cases, flags in self._flags:
            each = flags.tolist() if len(flags) == len(cases) else [bool(flags.any())] * len(cases)
            for case, flag in zip(cases, each, strict=True):
                result[case] = result.get(case, False) or flag
        return result

    @property
    def cases(self) -> list[Case]:
        """The cases on which it held in any pass."""
        return [case for case, flag in self.by_case.items() if flag]


@dataclass(eq=False)
class FiniteModel(AroundModel):
    """A model that gives 0 for each number of its gradient by the image that is NaN or infinite.

    The sign of NaN is 0, and a length of NaN spoils all pixels: without this an attack would stand still on such a
    case, or return NaN, by its own arithmetic. For the same reason an answer of NaN becomes the one that a class is
    not there, which is also how such an image is scored.

    Attributes:
        cases: the samples of the images that it gets; () where they are not known.
        lost_answers: cases on which an output was NaN or infinite.
        lost_gradients: cases on which a gradient was NaN or infinite.
        slopes: cases on which a gradient was anything but 0.
        name: of the model, for a sentence.

    Raises:
        NoGradientError: an attack asks for a gradient, and the model has none.
    """

    model: Model
    cases: tuple[Case, ...] = ()
    lost_answers: Tally = field(default_factory=Tally)
    lost_gradients: Tally = field(default_factory=Tally)
    slopes: Tally = field(default_factory=Tally)
    name: str = "the network"

    def __call__(self, image: Image) -> LogOdds:
        asks_gradient = torch.is_grad_enabled() and image.requires_grad
        if asks_gradient:
            image = image.view_as(image)  # a node of its own: the hook sees the gradient of this pass alone
            image.register_hook(self._finite)  # type: ignore[no-untyped-call]
        log_odds = self.model(image)
        if asks_gradient and not log_odds.requires_grad:
            raise NoGradientError(self.name)
        finite = is_finite(log_odds.detach())
        self.lost_answers.note(self.cases, ~finite)
        return log_odds if _all_on_cpu(finite) else without_nan(log_odds)

    def bind(self, setting: Setting) -> "FiniteModel":
        """The model bound to a setting, of its cases; both share what they learn of the network."""
        return replace(self, model=bind(self.model, setting), cases=setting.cases)

    def forget(self) -> None:
        """Forgets on which cases the network was not finite; bound copies do, too."""
        for tally in (self.lost_answers, self.lost_gradients, self.slopes):
            tally.clear()

    @property
    def flat_cases(self) -> list[Case]:
        """The cases whose every gradient so far was 0 on the whole image."""
        return [case for case, flag in self.slopes.by_case.items() if not flag]

    def _finite(self, grad: Image) -> Image:
        finite, flat = is_finite(grad), grad.flatten(1)
        self.lost_gradients.note(self.cases, ~finite)
        self.slopes.note(self.cases, (flat.amin(1) != 0) | (flat.amax(1) != 0))
        return grad if _all_on_cpu(finite) else torch.where(torch.isfinite(grad), grad, 0.0)


def _all_on_cpu(flags: Tensor) -> bool:
    """Whether all flags hold, asked on the CPU alone: a step on a GPU must not wait for an answer."""
    return flags.device.type == "cpu" and bool(flags.all())
