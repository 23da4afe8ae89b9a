"""How far a promptable network falls: by an attacker who knows its prompt, who does not, and by a sloppy prompt alone.

    python benchmarks/promptable.py --data data --prompt box --out OUT       # again: with the same network

Trains a small network that takes images and prompts on the training patients, in a loop of its own, and wraps it as any
other network: `own('benchmarks/promptable.py:Box', weights='OUT/box.safetensors', prompt='box', margin=2)`. Prints a
row per attack and budget: Dice per volume and its 95 % interval over the test patients.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import medseg_attack as ma
from medseg_attack import registry
from medseg_attack.attacks.composed.adaptive import Averaged
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.data.prepared.reading import Prepared, open_prepared
from medseg_attack.evaluation.loop import attack_chunk, in_batches
from medseg_attack.models.hidden_maps import network_of
from medseg_attack.models.prompts import Boxes, Points, Policy, Prompted
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import with_eps
from medseg_attack.report.sheet import Sheet, between, from_to, markdown, number, p_value, signed
from medseg_attack.runs.rows import table_of
from medseg_attack.stats.patients import change, paired
from medseg_attack.stats.scores import pooled, scored
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, AroundAttack, Attack, Batch, Bindable, Image, Mask, Model, Setting

MARGIN, POINTS = 2.0, 3  # of the policies; 2 pixels of 64 are 8 of 256
BATCH = 16
WIDTHS = (8, 16, 32)  # of the encoder
MAPS, MIXED = 12, 16  # of the image, and of it beside a prompt
EPS = 2, 4, 8  # of 255
WORST = "untouched, the worst of 32 prompts"
KNOWN, ANOTHER = "PGD that knows the prompt", "PGD with another prompt"
FRESH, EOT = "PGD with a fresh prompt per step", "PGD on the mean over prompts"
FEATURES = "features alone, without a prompt"
PAIRS = (ANOTHER, KNOWN), (EOT, ANOTHER), (EOT, FRESH), (FEATURES, EOT), (WORST, EOT)


class Encoder(nn.Module):
    """A U-Net of the image alone: (b, 1, h, w) -> (b, MAPS, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(n, m) for n, m in zip((1, *WIDTHS), WIDTHS, strict=False))
        self.up = nn.ModuleList((block(WIDTHS[2] + WIDTHS[1], WIDTHS[1]), block(WIDTHS[1] + WIDTHS[0], MAPS)))

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for layer in self.down[1:]:
            maps.append(layer(functional.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for layer in self.up:
            side = maps.pop()
            x = layer(torch.cat((functional.interpolate(x, side.shape[2:], mode="bilinear"), side), 1))
        return x


def block(n: int, m: int) -> nn.Sequential:
    first, second = nn.Conv2d(n, m, 3, padding=1), nn.Conv2d(m, m, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(m), nn.ReLU(), second, nn.BatchNorm2d(m), nn.ReLU())


class Promptable(nn.Module):
    """Maps of the image, seen once; what they are where a prompt points to; and a map of logits for each prompt.

    It does not know which organ a prompt is of.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.image, self.prompt = nn.Conv2d(MAPS, MIXED, 1), nn.Conv2d(channels, MIXED, 3, padding=1)
        self.pointed, self.last = nn.Linear(MAPS, 2 * MIXED), nn.Conv2d(MIXED, 1, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU

    def maps(self, images: Tensor, prompts: Tensor) -> Tensor:
        """The logits (b, k, h, w) of prompts (b, k, channels, h, w), whose first channel is 1 where they point to."""
        code, place = self.encoder(images), prompts[:, :, 0]
        pointed = torch.einsum("bnhw,bkhw->bkn", code, place) / place.sum((2, 3)).clamp(min=1e-6)[..., None]
        scale, shift = self.pointed(pointed)[..., None, None].chunk(2, 2)
        of_prompt = self.prompt(prompts.flatten(0, 1)).unflatten(0, prompts.shape[:2])
        mixed = (self.image(code)[:, None] * (1 + scale) + shift + of_prompt).relu()
        logits: Tensor = self.last(mixed.flatten(0, 1))
        return logits.view(place.shape)


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of an image's pixels, that broadcast to (b, k, h, w)."""
    return torch.arange(x.shape[2]).to(x).view(1, 1, -1, 1), torch.arange(x.shape[3]).to(x).view(1, 1, 1, -1)


class Box(Promptable):
    """1 in a box, less within a pixel of its sides; and where each pixel lies between the sides, held to -2 and 2."""

    def __init__(self) -> None:
        super().__init__(3)

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        rows, columns = places(images)
        x0, y0, x1, y1 = (side[..., None, None] for side in boxes.unbind(-1))
        depth = torch.minimum(torch.minimum(columns - x0, x1 - columns), torch.minimum(rows - y0, y1 - rows))
        across, along = ((2 * at - a - b) / (b - a + 1) for at, a, b in ((columns, x0, x1), (rows, y0, y1)))
        shape = depth.shape
        channels = (depth + 1).clamp(0, 1), across.clamp(-2, 2).expand(shape), along.clamp(-2, 2).expand(shape)
        return self.maps(images, torch.stack(channels, 2))


class Point(Promptable):
    """A Gaussian of half a pixel around each point, and the distance to the nearest one in units of 8 pixels."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, images: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        rows, columns = (each[..., None] for each in places(images))
        x, y = (points[..., axis][:, :, None, None] for axis in (0, 1))
        far = torch.where(labels[:, :, None, None] > 0, (columns - x) ** 2 + (rows - y) ** 2, 1e4).amin(-1)
        return self.maps(images, torch.stack(((-2 * far).exp(), far.sqrt().clamp(max=16) / 8), 2))


NETWORKS: dict[str, tuple[type[Box | Point], Policy, str]] = {  # with the option of `own` that names the policy
    "box": (Box, Boxes(MARGIN), f"margin={MARGIN:g}"),
    "points": (Point, Points(POINTS), f"points={POINTS}"),
}


def trained(data: Prepared, prompt: str, epochs: int) -> nn.Module:
    """A network that was trained on all patients but those to test, on slices that show an organ."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    cases = [data.read(ref) for split in ("train", "val") for ref in data.refs(split)]
    images = torch.stack([case.image for case in cases])
    truths = torch.stack([case.target[data.task.scored_channels] for case in cases])
    used = truths.flatten(1).any(1).nonzero()[:, 0]
    make, policy, _ = NETWORKS[prompt]
    net, n = make(), len(used) // BATCH
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * n)
    for _ in range(epochs):
        for index in used[torch.randperm(len(used), generator=rng)][: BATCH * n].view(n, BATCH):
            turns, mirrored, gamma = torch.rand(3, generator=rng).tolist()
            x, truth = (torch.rot90(each[index], int(4 * turns), (2, 3)) for each in (images, truths))
            x, truth = (each.flip(3) if mirrored < 0.5 else each for each in (x, truth))
            prompts = policy.inputs(torch.stack([policy.drawn(each, rng) for each in truth]), x.shape[2:])
            optimiser.zero_grad()
            loss(net(x ** (0.7 * 2**gamma), *prompts), truth).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return net.eval()


def loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy and 1 - soft Dice of the organs that are there, which alone have a prompt."""
    is_there = truth.flatten(2).any(2)
    logits, target = logits[is_there].flatten(1), truth[is_there].flatten(1).float()
    p = logits.sigmoid()
    dice = (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)
    return functional.binary_cross_entropy_with_logits(logits, target) + (1 - dice).mean()


@dataclass(frozen=True)
class OnePrompt(Bindable, AroundAttack):
    """An attack that takes one prompt for the one that is scored.

    Attributes:
        scored: whether it is that one; False: another draw of the same policy.
    """

    attack: Attack = PGD()
    scored: bool = False

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        setting, net = self.setting, network_of(model).net
        assert setting is not None
        assert isinstance(net, Prompted)
        stream = "score" if self.scored else "one prompt"
        prompts = net.bind(Setting(setting.task, setting.cases, stream=stream)).prompts(len(image)).to(image)
        return self.attack(bind(model, replace(setting, prompts=prompts)), image, target, seeds)


def attacks(steps: int, passes: int) -> Iterator[tuple[str, str, Attack]]:
    """Name, budget and attack of each row."""
    yield "clean", "", registry.build("clean", "attack")
    yield WORST, "", registry.build(f"worst_prompt(jitter={MARGIN})", "attack")
    for eps in EPS:
        pgd, features = (
            with_eps(registry.build(text, "attack"), eps / 255)
            for text in (f"pgd(steps={steps})", f"mafl(steps={steps}, weight=0, smoothness=0)")
        )
        yield "noise", f"{eps}/255", with_eps(registry.build("noise", "attack"), eps / 255)
        yield KNOWN, f"{eps}/255", OnePrompt(pgd, scored=True)
        yield ANOTHER, f"{eps}/255", OnePrompt(pgd)
        yield FRESH, f"{eps}/255", pgd
        yield EOT, f"{eps}/255", Averaged(pgd, passes)
        yield FEATURES, f"{eps}/255", features


def measured(data: Prepared, model: SegModel, rows: Sequence[tuple[str, str, Attack]], every: int) -> pd.DataFrame:
    """The rows of all attacks on every N-th slice of the test patients; `run` is name and budget."""
    frames: list[pd.DataFrame] = []
    for refs in in_batches(data.refs("test")[::every], BATCH):
        batch = Batch.of([data.read(ref) for ref in refs])
        results = attack_chunk(model, [batch], [attack for _, _, attack in rows])
        for (name, eps, _), result in zip(rows, results, strict=True):
            frames.append(table_of(result.rows).to_pandas().assign(run=f"{name} {eps}".strip()))
    return pd.concat(frames, ignore_index=True)


def dice_sheet(rows: Sequence[tuple[str, str, Attack]], frame: pd.DataFrame, title: str, caption: str) -> Sheet:
    """Dice per volume of each row, and what it lost of the clean one."""
    table, cases = ma.summary(frame), scored(pooled(frame, "volume"), "one")
    organs = list(dict.fromkeys(frame["cls"]))
    lines = []
    for (name, eps, _), row in zip(rows, table.to_dict("records"), strict=True):
        of_run = cases[cases["run"] == row["run"]]
        lost = change(of_run.assign(difference=of_run["dice_adv"] - of_run["dice_clean"], old=of_run["dice_clean"]))
        means = [number(row[f"{organ}_adv"]) for organ in [*organs, "mean"]]
        changes = signed(lost.mean), from_to(lost.low, lost.high)
        passes = f"{row['forwards']:.0f} + {row['backwards']:.0f}"
        lines.append([name, eps, *means, between(row["low"], row["high"]), *changes, passes])
    heads = ["image and prompt", "eps", *organs, "mean", "95 % CI", "change", "95 % CI", "passes"]
    return Sheet(title, heads, lines, caption, left=2)


def pairs_sheet(frame: pd.DataFrame) -> Sheet:
    """Differences of the mean Dice that two rows leave, over the same patients."""
    of_run = dict(list(scored(pooled(frame, "volume"), "one").groupby("run")))
    lines = []
    for eps in EPS:
        for names in PAIRS:
            new, old = (of_run[name if name == WORST else f"{name} {eps}/255"] for name in names)
            pair = change(paired(new, old, "dice_adv"))
            cells = signed(pair.mean), from_to(pair.low, pair.high), p_value(pair.p)
            lines.append([" less ".join(names), f"{eps}/255", *cells])
    caption = "Below 0: the first of the two leaves less. p: Wilcoxon's signed ranks of patients, not corrected."
    return Sheet("Differences of what is left", ["difference", "eps", "Dice", "95 % CI", "p"], lines, caption, left=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared data")
    parser.add_argument("--prompt", choices=tuple(NETWORKS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained network")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10, help="of PGD and of the attack on features")
    parser.add_argument("--passes", type=int, default=8, help="prompts that a step of the averaged attack takes")
    parser.add_argument("--every", type=int, default=1, help="N: every N-th slice of the test patients")
    options = parser.parse_args()
    start = time.process_time()
    data, weights = open_prepared(options.data), options.out / f"{options.prompt}.safetensors"
    if not weights.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        net = trained(data, options.prompt, options.epochs)
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
    training = time.process_time() - start
    make, policy, option = NETWORKS[options.prompt]
    words = f"weights={str(weights)!r}, prompt={options.prompt!r}, {option}, encoder='encoder'"
    spec = f"own({f'{Path(__file__)}:{make.__name__}'!r}, {words})"
    model = registry.build(spec, "model")(data.task)
    rows = list(attacks(options.steps, options.passes))
    with frozen(model):
        frame = measured(data, model, rows, options.every)
    minutes = (time.process_time() - start) / 60
    caption = (
        f"Dice per volume given a {policy}; {frame['case'].nunique()} slices of {frame['volume'].nunique()} volumes of "
        f"{frame['group'].nunique()} test patients; 95 % CI: Gaffke over patients, of changes with the clean Dice "
        f"taken into account. passes: forward + backward. {training / 60:.1f} minutes of a core for training, "
        f"{minutes:.1f} in all."
    )
    print(markdown(dice_sheet(rows, frame, f"prompt={options.prompt!r}, {option}", caption)))
    print(markdown(pairs_sheet(frame)))


if __name__ == "__main__":
    main()
