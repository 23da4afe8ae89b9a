"""Is `strongest` the strongest attack at its cost? Attacks of equal gradients on three networks and three data sets.

    python benchmarks/attack_strength.py --acdc ACDC/training --hippocampus HIPPOCAMPUS --out OUT   # and again
    python benchmarks/attack_strength.py --out OUT --report                          # the table as Markdown

A cell is a data set, a network, a budget and a number of gradients; each attack adds a line to OUT/rows/*.jsonl. With
`--part k/N` every N-th line is run, so that several processes share the work. The networks are small residual U-Nets.
They are trained here on one half of the patients and attacked on the other: with Dice and focal loss, with a sigmoid
head, and adversarially. Slices of ACDC and the phantom are attacked, and whole volumes of the hippocampus. Attacks of
torchattacks need the extra `references`; `--attacks` leaves them out.
"""

import argparse
import dataclasses
import importlib
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from parts import add, part, rows
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.composed import strongest as suite
from medseg_attack.attacks.composed.strongest import Ascent, Strongest
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.metrics.harm import harm, harm_of, summed
from medseg_attack.metrics.overlap import counts
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.samples import gradient_of, reseeded, scaled
from medseg_attack.registry import with_eps
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.threat.objectives.weighted import masked_bce
from medseg_attack.training.losses import training_loss
from medseg_attack.types import Adversarial, Attack, Ball, Case, Image, LogOdds, Mask, Model, Objective, Setting, Task

DATA = ("acdc", "phantom", "hippocampus")
NETWORKS = ("dice_focal", "sigmoid", "adversarial")
SIDES = {"acdc": (80, 80), "phantom": (80, 80), "hippocampus": (24, 40, 32)}  # of the middle, which networks see
QUERIES = 100  # of Square in the suite before
TRAINING_EPS = 4 / 255


# data and networks


def prepare(name: str, scans: Path | None, out: Path) -> Path:
    """The prepared data set, half of whose patients are held out."""
    folder = out / "data" / name
    if folder.is_dir():
        return folder
    if name == "phantom":
        scans = out / "data" / "scans"
    if scans is None:
        raise SystemExit(f"expected --{name} with the folder of its training scans, got none; give it")
    options = {
        "acdc": ["--format", "acdc", "--size", "128,128"],
        "phantom": ["--format", "phantom(patients=20)"],
        "hippocampus": ["--format", "decathlon(classes=('anterior', 'posterior'))"],
    }
    words = [str(scans), *options[name], "--test", "0.5", "--out", str(folder)]
    command = [sys.executable, "-m", "medseg_attack", "prepare", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def middle(case: Case, sides: tuple[int, ...], exclusive: bool, task: Task) -> Case:
    """The middle of a slice or volume, with one class per pixel or with classes that may overlap."""
    starts = [(n - side) // 2 for n, side in zip(case.image.shape[1:], sides, strict=True)]
    window = (slice(None), *(slice(start, start + side) for start, side in zip(starts, sides, strict=True)))
    organs = case.target[window][list(task.scored)]
    if exclusive:
        free = organs.cumsum(0) == organs  # where no organ before it is
        organs = organs & free
        organs = torch.cat((~organs.any(0, keepdim=True), organs))
    return dataclasses.replace(case, image=case.image[window].contiguous(), target=organs.contiguous(), storage=None)


def cohort(folder: Path, network: str, split: str, slices: int) -> tuple[list[Case], Task]:
    """Cases of a split: whole scans, one of each patient before a second of any, until there are so many slices."""
    data, sides = open_prepared(folder), SIDES[folder.name]
    held_out = {ref.id for ref in data.refs("test", dims=len(sides))}
    refs = [ref for ref in data.refs("all", dims=len(sides)) if (ref.id in held_out) == (split == "test")]
    exclusive = network != "sigmoid"
    organs = tuple(data.task.classes[k] for k in data.task.scored)
    task = Task(data.task.name, ("background", *organs) if exclusive else organs, exclusive=exclusive)
    of_patient: dict[str, list[str]] = {}
    for ref in sorted(refs, key=lambda ref: ref.volume):
        if ref.volume not in of_patient.setdefault(ref.group, []):
            of_patient[ref.group].append(ref.volume)
    in_turn = sorted((rank, volume) for volumes in of_patient.values() for rank, volume in enumerate(volumes))
    cases: list[Case] = []
    for _, volume in in_turn:
        if len(cases) < slices:
            cases += [middle(data.read(ref), sides, exclusive, data.task) for ref in refs if ref.volume == volume]
    return cases, task


def stacked(cases: Sequence[Case], device: torch.device) -> tuple[Image, Mask]:
    return tuple(torch.stack([getattr(case, name) for case in cases]).to(device) for name in ("image", "target"))  # type: ignore[return-value]


def network_of(name: str, network: str, folder: Path, out: Path, device: torch.device) -> SegModel:
    """The trained network, from `out` or trained now."""
    file = out / "networks" / f"{name}-{network}.pt"
    cases, task = cohort(folder, network, "train", 10**9) if not file.is_file() else cohort(folder, network, "test", 1)
    torch.manual_seed(0)
    model = SegModel(new_network(len(SIDES[name]), len(task.classes)), task, stride=8).to(device)
    if file.is_file():
        model.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    else:
        train(model, network, *stacked(cases, device))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval().requires_grad_(False)


def new_network(dims: int, classes: int) -> torch.nn.Module:
    from monai.networks.nets.unet import UNet

    net: torch.nn.Module = UNet(dims, 1, classes, (8, 16, 32, 64), (2, 2, 2), num_res_units=2)
    return net


def train(model: SegModel, network: str, image: Image, target: Mask) -> None:
    """Training in place; adversarially on three steps of PGD for three images of four."""
    loss = training_loss("dice_focal" if network == "dice_focal" else "dice_ce", model.task)
    steps, rng = 700 if network == "adversarial" else 900, torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    for _ in range(steps):
        chosen = torch.randint(len(image), (12,), generator=rng)
        x, y = image[chosen], target[chosen].to(image.dtype)
        axes = tuple(range(2, x.ndim))
        shift = torch.randint(-6, 7, (len(axes),), generator=rng).tolist()
        x, y = x.roll(shift, axes), y.roll(shift, axes)
        gain, offset = (torch.rand(len(x), *[1] * (x.ndim - 1), generator=rng).to(x) for _ in range(2))
        x = (x * (0.8 + 0.4 * gain) + 0.1 * (offset - 0.5)).clamp(0, 1)
        if network == "adversarial":
            attacked = climbed(model, loss, x[len(x) // 4 :], y[len(x) // 4 :], rng)
            x = torch.cat((x[: len(x) // 4], attacked))
        optimiser.zero_grad()
        loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rate.step()


def climbed(model: SegModel, loss: Callable[..., Tensor], x: Image, y: Tensor, rng: torch.Generator) -> Image:
    ball = Linf(TRAINING_EPS)
    attacked = ball.project(x + TRAINING_EPS * (2 * torch.rand(x.shape, generator=rng).to(x) - 1), x)
    for _ in range(3):
        attacked.requires_grad_()
        grad = gradient_of(loss(model(attacked), y), attacked)
        attacked = ball.project(attacked.detach() + ball.step(grad, x) / 2, x)
    return attacked.detach()


# attacks


def annealed_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
    """Soft Dice over a temperature that falls from 3 to 0.5."""
    return soft_dice(log_odds / (3.0 * (0.5 / 3.0) ** progress), target)


def log_dice(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> Tensor:
    p, y = torch.sigmoid(log_odds).flatten(2), target.flatten(2)
    return -torch.log((2 * (p * y).sum(2) + 1) / (p.sum(2) + y.sum(2) + 1)).mean(1)


@dataclasses.dataclass(frozen=True)
class FourClimbs:
    """Four climbs by sign with momentum, one for each objective, whose radius shrinks from twice the ball."""

    ball: Ball
    gradients: int

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        worst = judge(model, self.ball, image, image, target)
        objectives: tuple[Objective, ...] = (soft_dice, annealed_dice, log_dice, for_task(masked_bce, model.task))
        for number, objective in enumerate(objectives):
            worst |= self._climb(model, objective, image, target, reseeded(seeds, number))
        return worst

    def _climb(
        self, model: Model, objective: Objective, image: Image, target: Mask, seeds: Sequence[int]
    ) -> Adversarial:
        steps = max(self.gradients // 4, 1)
        x, direction, worst = self.ball.sample(image, seeds), torch.zeros_like(image), None
        for step in range(steps):
            progress = step / max(steps - 1, 1)
            ball = with_eps(self.ball, self.ball.eps * max(2 - 2 * progress, 1.0))
            x = ball.project(x, image).detach().requires_grad_()
            log_odds = model(x)
            grad = gradient_of(objective(log_odds, target, progress), x)
            if progress >= 0.5:
                judged = judge_prediction(model, self.ball, x, image, model.decide(log_odds.detach()), target)
                worst = judged if worst is None else worst | judged
            direction = 0.9 * direction + 0.1 * scaled(grad)
            length = 0.04 + 0.96 * (1 + math.cos(math.pi * progress)) / 2
            x = ball.project(x.detach() + length * self.ball.step(direction, image), image)
        last = judge(model, self.ball, self.ball.project(x, image), image, target)
        return last if worst is None else worst | last


class LogProbabilities(torch.nn.Module):
    """A network for a library that asks for logits and a parameter, of classes that exclude each other."""

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__()
        self.model, self.place = model, torch.nn.Parameter(torch.zeros((), device=device), requires_grad=False)

    def forward(self, image: Image) -> Tensor:
        return torch.nn.functional.logsigmoid(self.model(image))


@dataclasses.dataclass(frozen=True)
class OfTorchattacks:
    """An attack of torchattacks on the cross-entropy of all pixels, in steps of eps/100 or of 2.5 eps in all."""

    ball: Ball
    gradients: int
    name: str

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        eps, steps = self.ball.eps, self.gradients
        attack_class: Any = getattr(importlib.import_module("torchattacks"), self.name)
        torch.manual_seed(seeds[0])
        alpha = max(2.5 / steps, 0.01) * eps
        attack = attack_class(LogProbabilities(model, image.device), eps=eps, alpha=alpha, steps=steps)
        attacked = self.ball.project(attack(image, target.int().argmax(1)).to(image), image)
        return judge(model, self.ball, attacked, image, target)


def between(softest: float = math.inf, sharpest: float = 0.0) -> type[Strongest]:
    """`strongest` whose ascents have no temperature beyond these."""

    class Between(Strongest):
        @property
        def ascents(self) -> tuple[Ascent, ...]:
            return tuple(
                dataclasses.replace(a, softest=min(a.softest, softest), sharpest=max(a.sharpest, sharpest))
                for a in super().ascents
            )

    return Between


class OneAscent(Strongest):
    ascents = (Ascent(1.0),)


class TwoAscents(Strongest):
    ascents = (Ascent(0.6), Ascent(1.0))


class NoThirdAscent(Strongest):
    ascents = (Ascent(0.6), Ascent(1.0, log=True, softest=0.25))


def written(text: str) -> Callable[[float, int], Attack]:
    """The attack of a spec in which G/n stands for a part of the gradients."""

    def make(eps: float, gradients: int) -> Attack:
        spec = text
        for share in (8, 4, 2, 1):
            spec = spec.replace(f"G/{share}", str(max(gradients // share, 1)))
        attack: Attack = with_eps(registry.build(spec, "attack"), eps)
        return attack

    return make


RADII = "radii=(2, 1.5, 1)"
SHARED = "steps=G/8, radii=(2, 1.5, 1)"
BEFORE = (
    f"best_of((apgd(objective=masked_bce, {SHARED}), apgd(objective=balanced_bce, {SHARED}), apgd(objective=js, "
    f"{SHARED}), apgd(objective=masked_margin, {SHARED}), pgd(objective=cosine_bce, steps=G/8), "
    f"apgd(objective=soft_dice, {SHARED}), pgd(objective=bce, steps=G/8, restarts=2), "
    f"square(objective=soft_dice, queries={QUERIES})))"
)
ATTACKS: dict[str, Callable[[float, int], Attack]] = {
    "strongest, slices": lambda eps, gradients: Strongest(Linf(eps), gradients, "slice"),
    "strongest, volumes": lambda eps, gradients: Strongest(Linf(eps), gradients, "volume"),
    "suite before": written(BEFORE),
    "four climbs": lambda eps, gradients: FourClimbs(Linf(eps), gradients),
    "three members": written(
        f"best_of((apgd(objective=soft_dice, steps=G/2), apgd(objective=masked_bce, steps=G/4, {RADII}), "
        f"apgd(objective=balanced_bce, steps=G/4, {RADII})))"
    ),
    "sea": written("sea(steps=G/4)"),
    "apgd soft_dice": written("apgd(objective=soft_dice, steps=G/1)"),
    "pgd soft_dice": written("pgd(objective=soft_dice, steps=G/1)"),
    "apgd masked_bce": written(f"apgd(objective=masked_bce, steps=G/1, {RADII})"),
    "cospgd": written("cospgd(steps=G/1, keep_worst=True)"),
    "segpgd": written("segpgd(steps=G/1, keep_worst=True)"),
    "torchattacks PGD": lambda eps, gradients: OfTorchattacks(Linf(eps), gradients, "PGD"),
    "torchattacks MI-FGSM": lambda eps, gradients: OfTorchattacks(Linf(eps), gradients, "MIFGSM"),
}
EXCLUSIVE = ("torchattacks PGD", "torchattacks MI-FGSM")  # have no loss for classes that may overlap
ABLATION: dict[str, tuple[type[Strongest], dict[str, float]]] = {
    "one ascent": (OneAscent, {}),
    "two ascents of Dice": (TwoAscents, {}),
    "no third ascent": (NoThirdAscent, {}),
    "one temperature": (between(0.25, 0.25), {}),
    "no softer start": (between(softest=0.25), {}),
    "no sharper end": (between(sharpest=0.05), {}),
    "no wider ball": (Strongest, {"WIDEST": 1.0}),
}


# cells


@dataclasses.dataclass(frozen=True)
class Line:
    """One attack in one cell; what identifies a row."""

    data: str
    network: str
    eps: float
    gradients: int
    attack: str


def lines(options: argparse.Namespace) -> Iterator[Line]:
    attacks = [name for name in (*ATTACKS, *(ABLATION if options.ablation else ())) if name in options.attacks]
    for gradients in options.gradients:
        for eps in options.eps:
            for network in options.networks:
                for data in options.data:
                    fitting = (name for name in attacks if network != "sigmoid" or name not in EXCLUSIVE)
                    yield from (Line(data, network, eps, gradients, attack) for attack in fitting)


def attack_of(line: Line) -> Attack:
    if line.attack in ATTACKS:
        return ATTACKS[line.attack](line.eps / 255, line.gradients)
    return ABLATION[line.attack][0](Linf(line.eps / 255), line.gradients, "slice")


def measured(line: Line, model: SegModel, cases: Sequence[Case], device: torch.device) -> dict[str, Any]:
    image, target = stacked(cases, device)
    setting = Setting(model.task, tuple(cases))
    attack = bind(attack_of(line), setting)
    metered, start = CountedModel(model), time.perf_counter()
    with frozen(model), patch.dict(vars(suite), ABLATION[line.attack][1] if line.attack in ABLATION else {}):
        result = attack(metered, image, target, list(range(len(cases))))
        pred = model.decide(model(result.image))
    names = {case.volume: n for n, case in enumerate(cases)}
    pixels = counts(pred, target)[:, list(model.task.scored)]
    by_volume = summed(pixels, torch.tensor([names[case.volume] for case in cases], device=device))
    return dataclasses.asdict(line) | {
        "slices": len(cases),
        "volumes": len(names),
        "patients": len({case.group for case in cases}),
        "slice_dice": 1 - harm_of(pixels).mean().item(),
        "volume_dice": 1 - harm_of(by_volume[list(names.values())]).mean().item(),
        "clean": 1
        - harm(model.decide(model(image))[:, list(model.task.scored)], target[:, list(model.task.scored)])
        .mean()
        .item(),
        "forwards": metered.forwards,
        "gradients_spent": metered.backwards,
        "seconds": time.perf_counter() - start,
    }


def run(options: argparse.Namespace) -> None:
    device, out = torch.device(options.device), options.out
    done = {tuple(row[field.name] for field in dataclasses.fields(Line)) for row in rows(out)}
    (out / "rows").mkdir(parents=True, exist_ok=True)
    folders = {name: prepare(name, vars(options).get(name), out) for name in options.data}
    load = partial(network_of, out=out, device=device)
    for line in list(lines(options))[part(options.part)]:
        if dataclasses.astuple(line) in done:
            continue
        model = load(line.data, line.network, folders[line.data])
        cases, _ = cohort(folders[line.data], line.network, "test", options.slices)
        row = measured(line, model, cases, device)
        add(row, out / "rows" / f"{options.part.replace('/', '-of-')}.jsonl")
        print(f"{line}: {row['slice_dice']:.4f} {row['volume_dice']:.4f} in {row['seconds']:.0f} s", file=sys.stderr)


def report(out: Path) -> None:
    """A table for each score: a row for each cell, a column for each attack, the lowest in bold."""
    table = rows(out)
    attacks = [name for name in (*ATTACKS, *ABLATION) if any(row["attack"] == name for row in table)]
    for score in ("slice_dice", "volume_dice"):
        print(f"\n| {score} of | eps | gradients | slices (patients) | " + " | ".join(attacks) + " |")
        print("| --- " * 4 + "| ---: " * len(attacks) + "|")
        cells = dict.fromkeys((r["gradients"], r["eps"], r["data"], r["network"]) for r in table)
        for gradients, eps, data, network in sorted(cells):
            of_cell = {
                r["attack"]: r
                for r in table
                if (r["gradients"], r["eps"], r["data"], r["network"]) == (gradients, eps, data, network)
            }
            least = min(r[score] for r in of_cell.values())
            first = next(iter(of_cell.values()))
            shown = [f"{of_cell[name][score]:.3f}" if name in of_cell else "" for name in attacks]
            bold = [f"**{text}**" if text == f"{least:.3f}" else text for text in shown]
            size = f"{first['slices']} ({first['patients']})"
            print(f"| {data} {network} | {eps:g}/255 | {gradients} | {size} | " + " | ".join(bold) + " |")
    print("\n| attack | forwards / gradients |\n| --- | --- |")
    for name in attacks:
        spent = {g: r for r in table if r["attack"] == name for g in [r["gradients"]]}
        print(
            f"| {name} | "
            + ", ".join(f"{r['forwards']}/{r['gradients_spent']}" for _, r in sorted(spent.items()))
            + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, help="folder of ACDC's training scans")
    parser.add_argument("--hippocampus", type=Path, help="folder of the Decathlon's hippocampus")
    parser.add_argument("--out", type=Path, required=True, help="folder of data, networks and rows")
    parser.add_argument("--slices", type=int, default=100, help="least number that are attacked, or volumes")
    parser.add_argument("--gradients", type=int, nargs="+", default=[50, 160, 500])
    parser.add_argument("--eps", type=float, nargs="+", default=[1, 2, 4, 8], help="budgets, in 255ths")
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--attacks", nargs="+", default=[*ATTACKS, *ABLATION])
    parser.add_argument("--ablation", action="store_true", help="also parts of strongest left out")
    parser.add_argument("--part", default="0/1", help="k/N: every N-th line, from the k-th on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report", action="store_true", help="print the tables and run nothing")
    options = parser.parse_args()
    if not options.report:
        run(options)
    report(options.out)


if __name__ == "__main__":
    main()
