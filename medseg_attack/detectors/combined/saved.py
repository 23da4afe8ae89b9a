"""A detector that was fitted and calibrated before, by its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medseg_attack.detectors.files import SavedDetector, load_detector
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Case, Image, LogOdds, Model, PerSample


@register("saved", kind="detector", cost="those of the detector in the file")
@dataclass(frozen=True)
class Saved:
    """A detector from a file of `medattack detect`, for an attack that knows it: evading(detector=saved('FILE')).

    Attributes:
        file: that `medattack detect` wrote.
        fingerprint: of the detector in the file; "" takes that of the file as it is.

    Raises:
        InputError: the file holds another detector than that of the fingerprint.
    """

    file: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not Path(self.file).is_file():
            return  # refused when it is used
        own = self.loaded.fingerprint[:12]
        if self.fingerprint and self.fingerprint != own:
            raise InputError(
                f"expected the detector {self.fingerprint} in {self.file}, got {own}; restore the file, or fit it again"
            )
        object.__setattr__(self, "fingerprint", own)  # so that a run's configuration says which detector it was

    @cached_property
    def loaded(self) -> SavedDetector:
        """The detector in the file, with what it was fitted on."""
        return load_detector(Path(self.file))

    def looks_at_scans(self) -> bool:
        """Whether the score of a case depends on the other cases of its scan."""
        return self.loaded.calibrated.looks_at_scans()

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        """The model's answer, the score of each case and its excess over the limit."""
        return self.loaded.calibrated.watch(model, image, cases)
