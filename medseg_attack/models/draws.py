"""Random numbers of a model: by case and pass, so that a row is the same alone, in a batch and after a restart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

from medseg_attack.types import Setting


@dataclass(eq=False)
class Draws:
    """Seeds for each sample of each pass.

    Attributes:
        stream: name of the random numbers; "" until a setting is bound.
        cases: ids of the samples; () where they are not known, and then numbered.
        counts: passes of each case so far, shared by all that is bound to a part of the same cases.
    """

    stream: str = ""
    cases: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)

    def bound(self, setting: Setting) -> "Draws":
        """Those of a setting: from the first pass on, or on from where the same stream is."""
        cases = tuple(case.id for case in setting.cases)
        return Draws(setting.stream, cases, self.counts if setting.stream == self.stream else {})

    def seeds(self, n: int) -> list[int]:
        """A seed for each of `n` samples in one more pass."""
        names: Sequence[str] = self.cases if len(self.cases) == n else list(map(str, range(n)))
        seeds = []
        for name in names:
            number = self.counts[name] = self.counts.get(name, 0) + 1
            seeds.append(crc32(f"{self.stream}/{name}/{number}".encode()))
        return seeds
