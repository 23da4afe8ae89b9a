"""The attack that replays the images which another run stored, on this model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.registry import build, register, with_eps
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runs.stored_files import read_config
from medseg_attack.runs.stored_specs import attack_of
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, Ball, Bindable, Image, Mask, Model


@register(
    "replay",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="no model",
    norm="that of the run",
    reaches="what is known in tests/cli/test_cli.py, as it needs a run",
)
@dataclass(frozen=True)
class Replay(Bindable):
    """The perturbed scans that another run stored, within that run's own ball; it asks the model nothing.

    Attributes:
        run: folder of one run that has stored images.
        content: hash of the run's images, which tells its rows from those of another run in the same folder.

    Raises:
        InputError: when called, the folder has no run, or the attack is not bound to its cases.
    """

    run: str = ""
    content: str = ""

    @cached_property
    def ball(self) -> Ball:
        """The ball of the run."""
        if not self.run:
            return Linf(0.0)
        if not (Path(self.run) / "config.json").is_file():
            raise InputError(
                f"expected the folder of one run, got {self.run} without config.json; give RUN, not its study"
            )
        config = read_config(Path(self.run))
        ball: Ball = build(attack_of(config), "attack").ball
        if config.get("budget"):  # another fraction for every case: the widest of them holds them all
            ball = with_eps(ball, float(RunFolder(Path(self.run)).rows()["budget"].max()))
        return ball if self.setting is None else bind(ball, self.setting)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        if self.setting is None:
            raise InputError("replay reads stored images by case; run it through 'medattack evaluate --images RUN'")
        cases = self.setting.cases
        arrays = RunFolder(Path(self.run)).images([case.id for case in cases])
        stored = torch.stack([torch.from_numpy(array).to(torch.float64) for array in arrays]).to(image.device)
        values = StoredValues.of(cases, image.device)
        x = stored.to(image) if values is None else values.image(stored, image)
        return judge(model, self.ball, x, image, target)
