"""`medattack new`: a commented file to start from."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg_attack.cli import terminal
from medseg_attack.escaping import shell

STUDY = """# A study: every model under every attack at every budget. Run it with
#
#     medattack attack --config {name}
#
# Every field is an option of `medattack attack` of the same meaning; an option on the command line overrides it.

models: [unet_small]          # names of trained models, their folders, or specs such as "own('net.py:build')"
attacks: [fgsm, pgd(steps=40), strongest]  # medattack ls attacks
eps: [1/255, 4/255]           # fractions of the intensity window; 5HU, 20raw and 1sigma have units
# losses: [bce, soft_dice]    # what attacks increase, if not each its own; medattack ls objectives
# norm: l2                    # of every attack; its own by default
# steps: 20                   # of every attack that has steps
# region: outside:liver       # pixels that may change
# metrics: [hd95_mm, nsd(tolerance_mm=1)]    # beside Dice; medattack ls metrics
# data: medattack_runs/data/acdc             # the newest prepared data set by default
split: test                   # or val, train, all
# limit: 0.1                  # of the cases: a share below 1, or a number
# unit: slice                 # what is scored, and what attacks lower the Dice of: slice, volume or patient
control: true                 # noise of the same size beside every attack
seed: 0
"""

NETWORK = '''"""A network of one's own. Attack it with

    medattack attack --model "own('{name}:build', weights='net.pth')" --attack strongest --eps 4/255

or, in Python, with medseg_attack.wrap(build(task), classes=task.classes, exclusive=task.exclusive).
`medattack doctor --model "own('{name}:build')"` says whether it is read as it is meant.
"""

import torch
from torch import nn


class Net(nn.Module):
    """Replace it by your own: images (b, channels, rows, columns) in [0, 1] to one logit per class and pixel."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, classes, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # what the training did to images belongs here, so that it is attacked, too: normalisation, resizing
        return self.layers((x - 0.5) / 0.25)


def build(task) -> nn.Module:
    """The network for a data set: `task.classes` are the names of its channels, background first if they exclude
    each other (`task.exclusive`). Weights are read by `weights=`, or here with torch.load(..., weights_only=True).
    """
    return Net(task.channels, len(task.classes))
'''

ATTACK = '''"""An attack of one's own. Try it with `python {name}`.

In Python it is medseg_attack.attack(model, images, masks, MyAttack()).
In medseg_attack/attacks/gradient/ of a checkout it also gets a name on the command line, sweeps, resume and tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.climbing import Climbing, climb
from medseg_attack.attacks.judging import judge
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Image, Mask, Model


# the facts are those of `Entry` in medseg_attack/registry/table.py
@register("my_attack", kind="attack", cost="2 * steps + 1 forward, steps backward", reaches="all in eps")
@dataclass(frozen=True)
class MyAttack(Climbing):  # it has a ball (what may change, and by how much) and an objective (what is increased)
    """Steps along the gradient; the most harmful iterate (Author et al., arXiv 0000.00000).

    Attributes:
        steps: number of gradients.
        step_size: length of a step, as a multiple of eps.
    """

    steps: int = 10
    step_size: float = 0.25

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        # image (b, c, *s) in [0, 1], target (b, k, *s); one seed per image makes it repeatable in any batch
        x = self.ball.sample(image, seeds)
        worst = judge(model, self.ball, image, image, target)  # harm of each image, and the size of its change
        for step in range(self.steps):
            _, _, grad = climb(model, self.climbed(model), x, target, step / self.steps)
            x = self.ball.project(x + self.step_size * self.ball.step(grad, x), image)
            worst = worst | judge(model, self.ball, x, image, target)  # per image the more harmful of the two
        return worst


if __name__ == "__main__":
    import medseg_attack as ma

    masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 8:24, 8:24] = True
    net = torch.nn.Conv2d(1, 1, 1).eval()  # calls a lesion what is brighter than one half
    torch.nn.init.constant_(net.weight, 8.0)
    torch.nn.init.constant_(net.bias, -4.0)
    model = ma.wrap(net, classes=["lesion"], exclusive=False)
    result = ma.attack(model, 0.45 + 0.1 * masks, masks, MyAttack(), eps=0.06)
    print("harm", result.harm.tolist(), "size", result.size.tolist())
'''

FILES = {"study": ("study.yaml", STUDY), "attack": ("my_attack.py", ATTACK), "network": ("net.py", NETWORK)}


@terminal.command
def new(
    what: Annotated[Literal["study", "attack", "network"], typer.Argument(help="Kind of file to write.")],
    file: Annotated[
        Path | None,
        typer.Argument(help="File to write; there must be none.", show_default="study.yaml, my_attack.py or net.py"),
    ] = None,
) -> None:
    """Write a commented study, attack or network to start from.

    Example: medattack new study
    """
    from medseg_attack.errors import InputError
    from medseg_attack.storage.files import whole

    name, text = FILES[what]
    path = file or Path(name)
    if path.exists() or path.is_symlink():
        raise InputError(f"expected a file that is not there yet, got {path}; give another name")
    with whole(path) as part:
        part.write_text(text.replace("{name}", path.name), encoding="utf-8")
    terminal.say(f"wrote {path}")
    if what == "attack":
        terminal.print_next(f"python {shell(str(path))}")
    elif what == "study":
        terminal.next_step(["attack", "--config", str(path), "--plan"])
    else:
        terminal.next_step(["doctor", "--model", f"own({f'{path}:build'!r})"])
