"""A model that counts its forward and backward passes."""

from collections.abc import Callable

from medseg_attack.threat.binding import bind
from medseg_attack.types import AroundModel, Image, LogOdds, Mask, Model, Setting


class CountedModel(AroundModel):
    """A model that counts its forward and backward passes, one for each batch; all else is the model's own.

    Attributes:
        whole: the counted model that this one is a bound copy of; it counts these passes as well.
        known: an image and a function for the model's segmentation of it, which needs no second pass.
    """

    def __init__(
        self, model: Model, whole: "CountedModel | None" = None, known: tuple[Image, Callable[[], Mask]] | None = None
    ) -> None:
        self.model, self.whole, self.known = model, whole, known
        self.forwards = self.backwards = 0

    def __call__(self, image: Image) -> LogOdds:
        self._count(1, 0)
        log_odds = self.model(image)
        if log_odds.requires_grad:
            log_odds.register_hook(lambda grad: self._count(0, 1))  # type: ignore[no-untyped-call]
        return log_odds

    def known_segmentation(self, image: Image) -> Mask | None:
        """The segmentation of the very image whose segmentation is known, else None; it counts as a pass."""
        if self.known is None or not image.is_set_to(self.known[0]):
            return None
        self._count(1, 0)
        return self.known[1]()

    def bind(self, setting: Setting) -> "CountedModel":
        """The model bound to a setting; its passes are counted here as well."""
        return CountedModel(bind(self.model, setting), self)

    def _count(self, forwards: int, backwards: int) -> None:
        self.forwards += forwards
        self.backwards += backwards
        if self.whole is not None:
            self.whole._count(forwards, backwards)
