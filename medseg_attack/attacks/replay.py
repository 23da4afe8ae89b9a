"""Images that another run stored, as an attack: what transfers to this model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medseg_attack.attacks.baselines import judged
from medseg_attack.balls import Linf
from medseg_attack.errors import InputError
from medseg_attack.files import read_json
from medseg_attack.registry import build, register
from medseg_attack.results import RunFolder
from medseg_attack.types import Adversarial, Ball, Case, Image, Mask, Model


@dataclass(frozen=True)
class _Stored:
    ball: Ball
    run: str
    cases: tuple[str, ...]

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        stored = RunFolder(Path(self.run)).images(self.cases)
        x = torch.stack([torch.from_numpy(array) for array in stored]).to(image)
        return judged(model, self.ball, x, image, target)


@register("replay", kind="attack")
@dataclass(frozen=True)
class Replay:
    """The images that a run stored with --save-images, held to that run's own ball; it never queries the model.

    Attributes:
        run: folder of one run.
    """

    run: str = ""

    @property
    def ball(self) -> Ball:
        if not self.run:
            return Linf(0.0)
        ball: Ball = build(read_json(Path(self.run) / "config.json")["attack"], "attack").ball
        return ball

    def on(self, cases: Sequence[Case]) -> _Stored:
        """The attack on these cases."""
        return _Stored(self.ball, self.run, tuple(case.id for case in cases))

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        raise InputError("replay reads stored images by case; run it through 'medattack evaluate --images RUN'")
