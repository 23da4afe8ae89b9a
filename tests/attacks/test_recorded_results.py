"""The same attack on the same images gives the numbers that are recorded beside this file.

Who repeats a run with the next version expects its result. A test of a bound or of a rank does not see a momentum that
is a tenth smaller. So every attack runs here on a small smooth network, and numbers that see almost any other image are
compared with `recorded_results.json`. A change that moves a result is recorded on purpose, and read in the diff:

    PYTHONPATH=tests python tests/attacks/test_recorded_results.py            # all
    PYTHONPATH=tests python tests/attacks/test_recorded_results.py spsa zoo   # what has one of these words in its name

No number may depend on a processor's last bit. So each attack is also recorded on networks and images that differ from
these by parts in a million, which is a billion times what rounding of doubles does. `WIDTH` times the most that a
number moves there is how far it may be off. Nothing is recorded that moves by more than `MOST`: such an attack gets
fewer steps, or another budget.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.detectors import calibrated
from helpers.promptable import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_attack import registry
from medseg_attack.attacks.blackbox.transfer import Transfer
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.evading.watched import Evader
from medseg_attack.attacks.gradient.wang2024 import FgsmWang2024
from medseg_attack.defences.inputs.bit_depth import BitDepth
from medseg_attack.defences.inputs.median import Median
from medseg_attack.defences.models.guarded import guarded
from medseg_attack.defences.models.voted import voted
from medseg_attack.library.models import wrap
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.binding import bind
from medseg_attack.types import (
    Adversarial,
    Attack,
    Ball,
    Batch,
    Case,
    CaseRef,
    Donors,
    Fittable,
    Setting,
    Stack,
    Task,
    Window,
)

Recorded = dict[str, tuple[list[float], float]]  # numbers of a quantity, and how far each of them may be off
FILE = Path(__file__).with_name("recorded_results.json")
NOISE = 1e-6  # of weights and images, as a share of each number
OTHERS = 5  # networks and images beside those that are tested
WIDTH, LEAST = 20, 1e-5  # of a number: so many times what it moves by, and at least this share of it
MOST = 0.02  # of a number, more than which it may not be off

SLICES = Task("slices", ("bright", "dark"))
CLASSES = Task("classes", ("background", "bright", "dark"), exclusive=True)
SEEDS = [5, 6]


def drawn(*shape: int, seed: int) -> Tensor:
    """Numbers in [-1, 1]."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


class Net(nn.Module):
    """Two levels of smooth maps beside the brightness, of which an organ's log-odds grow or fall."""

    def __init__(self, channels: int, dims: int, exclusive: bool) -> None:
        super().__init__()
        self.conv: Any = F.conv3d if dims == 3 else F.conv2d
        kernel = (3,) * dims
        shapes = [(4, channels, *kernel), (5, 4, *kernel), (2, 9, *kernel)]
        self.top, self.below, self.last = (nn.Parameter(0.5 * drawn(*s, seed=n)) for n, s in enumerate(shapes))
        self.pool: Any = nn.AvgPool3d((1, 2, 2)) if dims == 3 else nn.AvgPool2d(2)
        self.smooth, self.deep, self.out = nn.Tanh(), nn.Tanh(), nn.Identity()
        self.slope = nn.Parameter(torch.tensor([9.0, -8.0], dtype=torch.float64))
        self.level = nn.Parameter(torch.tensor([0.62, 0.37], dtype=torch.float64))
        self.exclusive = exclusive

    def forward(self, x: Tensor) -> Tensor:
        top = self.smooth(self.conv(3 * x - 1.5, self.top, padding=1))
        below = self.deep(self.conv(self.pool(top), self.below, padding=1))
        up = below
        for axis in range(2, x.dim()):
            up = up.repeat_interleave(x.shape[axis] // below.shape[axis], axis)
        shape = (1, 2, *(1,) * (x.dim() - 2))
        bright = self.slope.view(shape) * (x.mean(1, keepdim=True) - self.level.view(shape))
        logits = bright + self.conv(torch.cat((top, up), 1), self.last, padding=1) / 3
        return self.out(torch.cat((0 * logits[:, :1], logits), 1) if self.exclusive else logits)


def changed(value: Tensor, noise: int) -> Tensor:
    """The same numbers, or for a `noise` above 0 numbers that differ by their millionth part."""
    return value * (1 + NOISE * drawn(*value.shape, seed=1000 + noise)) if noise else value


def case(
    number: int, task: Task, shape: tuple[int, ...], noise: int, patient: str = "patient", edges: bool = False
) -> Case:
    """A bright block and a dark one that touch, on a ground with noise; of a volume in some of its slices.

    Args:
        edges: whether both ends of the window are reached, and every other image has no organ.
    """
    image, target = 0.5 + 0.06 * drawn(task.channels, *shape, seed=50 + number), torch.zeros(2, *shape) > 0
    inner = (slice(1, -1),) * (len(shape) - 2)
    target[(0, *inner, slice(2 + number % 3, 8), slice(1, 6))] = True
    target[(1, *inner, slice(5, 10 + number % 2), slice(6, 10))] = True
    target = target.flip(-1) if number // 2 % 2 else target
    image = changed(image + 0.17 * target[:1] - 0.16 * target[1:], noise)
    if edges:
        image, target = (2.6 * (image - 0.5) + 0.5).clamp(0, 1), target & (number % 2 == 0)
    if task.exclusive:
        target = torch.cat((~target.any(0, keepdim=True), target))
    spacing, stack = ((3.0, 1.5, 1.0), None) if len(shape) == 3 else ((1.5, 1.0), Stack(number % 2, 2, 3.0))
    name = f"{patient}_{number}"
    volume = name if stack is None else patient
    return Case(name, volume, patient, image, target, spacing, Window(0, 1), stack, classes=task.classes)


@dataclass(frozen=True)
class Shelf:
    """Cases of other patients, by name."""

    cases: dict[str, Case]

    def read(self, ref: CaseRef) -> Case:
        return self.cases[ref.id]


@dataclass(frozen=True)
class Scene:
    """Two images or volumes, with a network that sees most of their organs.

    Attributes:
        shape: of an image.
        defence: what lies in front of the network: "" for nothing, "noise" or "bits".
        prompted: whether the network is asked with a box.
        edges: whether images reach both ends of the window, and every other one has no organ.
        alone: whether no other patient's images are known.
    """

    task: Task = SLICES
    shape: tuple[int, ...] = (16, 12)
    defence: str = ""
    prompted: bool = False
    edges: bool = False
    alone: bool = False

    def batch(self, noise: int, first: int = 0, patient: str = "patient") -> Batch:
        return Batch.of([case(first + i, self.task, self.shape, noise, patient, self.edges) for i in range(2)])

    def setting(self, noise: int) -> Setting:
        if self.alone:
            return Setting(self.task, self.batch(noise).cases)
        others = [c for n in (2, 4, 6) for c in self.batch(noise, n, f"other{n}").cases]
        refs = tuple(CaseRef(c.id, c.volume, c.group, self.shape, c.stack and c.stack.index) for c in others)
        return Setting(self.task, self.batch(noise).cases, Donors(Shelf({c.id: c for c in others}), refs))

    def model(self, noise: int, channels: int | None = None) -> SegModel:
        if self.prompted:
            names: dict[str, type[nn.Module]] = {}
            exec(NETWORKS, names)
            net = names["Box"]().double().eval()
            return wrap(net, self.task.classes, False, prompt="box")
        channels, dims = channels or self.task.channels, len(self.shape)
        net = Net(channels, dims, self.task.exclusive)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(changed(parameter, noise))
        model = SegModel(net, self.task, in_channels=channels, dims=dims).double().eval()
        if self.defence == "bits":
            return guarded(self.task, lambda task: model, (BitDepth(3), Median(3))).double().eval()
        if self.defence == "noise":
            return voted(self.task, lambda task: model, sigma=0.02, draws=1).double().eval()
        return model


SCENES = {
    "slices": Scene(),
    "classes": Scene(CLASSES),
    "colours": Scene(Task("colours", ("bright", "dark"), channels=3)),
    "volume": Scene(shape=(4, 12, 10)),
    "noisy": Scene(defence="noise"),
    "rounded": Scene(defence="bits"),
    "watched": Scene(),
    "wide": Scene(shape=(40, 36)),
    "wide classes": Scene(CLASSES, (40, 36)),
    "wide colours": Scene(Task("colours", ("bright", "dark"), channels=3), (40, 36)),
    "prompted": Scene(prompted=True),
    "edges": Scene(edges=True),
    "wide edges": Scene(shape=(40, 36), edges=True),
    "wide alone": Scene(shape=(40, 36), alone=True),
    "colour edges": Scene(Task("colours", ("bright", "dark"), channels=3), edges=True),
    "volume edges": Scene(shape=(4, 12, 10), edges=True),
    "watched edges": Scene(edges=True),
}

# Few steps, so that images differ in every pixel where anything does, and budgets that lead to other masks.
SPECS = {
    "slices": """
        pgd(linf(0.08), steps=3, step_size=0.3)
        pgd(linf(0.08), steps=1, restarts=2)
        pgd(l2(0.6), soft_dice, steps=3, momentum=0.7, step_size=0.4)
        pgd(linf(0.08), steps=4, step_size=0.2, momentum=0.8, look_ahead=True, random_start=False, keep_worst=False)
        pgd(linf(0.08), masked_bce, steps=3, diversity=0.7, smooth=3, keep_worst=False)
        pgd(linf(0.08), toward(bce, erase('dark')), steps=3)
        fgsm(l2(0.6))
        sweep fgsm(l2(0.6))
        sweep pgd(linf(0.08), steps=2)
        bim(linf(0.08), steps=3)
        mi_fgsm(l2(0.6), steps=4, momentum=0.9)
        ni_fgsm(l2(0.6), steps=4, momentum=0.9)
        di2_fgsm(l2(0.6), steps=4)
        ti_fgsm(l2(0.6), steps=4, smooth=5)
        segpgd(l2(0.6), steps=4)
        cospgd(l2(0.6), steps=4)
        apgd(linf(0.08), steps=12)
        apgd(l2(0.6), progressive_bce, steps=9)
        apgd(l2(0.6), soft_dice, steps=10, restarts=2, radii=(2.0, 1.5, 1.0), unit='volume')
        apgd(linf(0.08), masked_bce, steps=10, radii=(2.0, 1.0))
        daa(linf(0.08), steps=3)
        daa(l2(0.6), progressive_bce, steps=3, particles=3, coupling=0.7)
        padam(linf(0.08), steps=8)
        padam(l2(0.6), progressive_bce, steps=5)
        mafl(linf(0.08), steps=4)
        mafl(l2(0.6), progressive_bce, steps=3, features=0.5, smoothness=0.3, momentum=0.5, weight=0.5)
        mafl(l2(0.6), toward(bce, another_patient), steps=3)
        fgsm_wang2024(blend(0.2), channels=1)
        fgsm_wang2024(blend(0.2), swapped=False, channels=3)
        noise(linf(0.08))
        noise(l2(0.6), draw='uniform')
        noise(linf(0.08), draw='gaussian')
        blur(blur_width(1.0))
        blur(blur_width(2.0), bisections=3)
        contrast(contrast_loss(0.4))
        contrast(contrast_loss(0.8), bisections=3)
        control contrast(contrast_loss(0.8), bisections=3)
        clean
        shuffled(pgd(linf(0.08), steps=2))
        corruption('mri')
        corruption('ct', ball=severity(2.5))
        corruption('ultrasound', ball=severity(2.5))
        control corruption('mri', kind='motion')
        least_of((igsm(linf(0.2), success=by_dice(below=0.7)), dag(linf(0.2), success=by_dice(below=0.7))))
        both_norms(pgd(linf(0.08), steps=2))
        best_of((pgd(linf(0.08), steps=2), apgd(linf(0.08), steps=4)))
        best_of((pgd(linf(0.08), steps=2), apgd(linf(0.08), soft_dice, steps=4)), unit='volume')
        restarts(pgd(linf(0.08), steps=2), n=2)
        bf16(pgd(linf(0.08), steps=2))
        for_organ(pgd(linf(0.08), steps=3), 'dark')
        for_organ(pgd(linf(0.08), progressive_bce, steps=3), 'dark')
        rog(linf(0.08), steps=2, queries=3)
        parts rog(linf(0.08), steps=2, queries=3)
        sea(linf(0.08), steps=12)
        parts sea(linf(0.08), steps=12)
        sea(l2(0.6), steps=9, unit='volume')
        strongest(linf(0.08), gradients=12)
        strongest(linf(0.03), gradients=120)
        strongest(linf(0.02), gradients=400, unit='slice')
        averaged(pgd(linf(0.08), steps=2), passes=3)
        bpda(pgd(linf(0.08), steps=2))
        medis(linf(0.3), steps=9, success=by_dice(below=0.7))
        medis(linf(0.3), steps=9, success=by_dice(below=0.7), released=True)
        alma_prox(steps=12, step_size=0.02, every=2, success=by_dice)
        alma_prox(linf(0.9), steps=12, step_size=0.05, every=2, success=by_pixels(0.97), goal=erase)
        asma(steps=15, step_size=0.01, least=0.01, success=by_dice(above=0.3))
        asma(steps=8, step_size=0.02, least=0.01, success=by_dice(above=0.6), normalised=False, goal=erase('dark'))
        asma_ozbulak2019(steps=4)
        cw(steps=10, searches=3, step_size=0.03, price=0.05, success=by_dice)
        cw(steps=6, searches=3, step_size=0.05, price=1.0, kappa=0.3, success=by_dice, goal=erase)
        dag(steps=8, step_size=0.03, success=by_dice)
        dag(l2(20), steps=8, step_size=0.03, success=by_dice, goal=erase)
        deepfool(linf(0.9), steps=8, success=by_dice)
        deepfool(l2(20), steps=8, success=by_dice, overshoot=0.1)
        igsm(linf(0.3), steps=5, step_size=0.02, success=by_dice)
        igsm(linf(0.3), steps=9, step_size=0.03, success=by_dice(above=0.6), goal=erase)
        igsm(linf(0.3), progressive_bce, steps=5, step_size=0.02, success=by_dice)
        jsma(l0(0.9), steps=8, share=0.02, success=by_dice)
        jsma(l0(0.9), steps=12, share=0.03, success=by_dice(above=0.5), theta=0.5, goal=erase('dark'))
        lbfgs(steps=6, searches=3, success=by_dice)
        lbfgs(steps=4, searches=4, success=by_dice, price=1.0, goal=erase)
        pdgd(steps=10, success=by_dice)
        pdpgd(linf(0.9), steps=30, success=by_dice, dual_step_size=0.4)
        pdpgd(l2(20), steps=20, success=by_dice(above=0.5), step_size=0.1, dual_step_size=0.3, goal=erase('dark'))
        sweep igsm(linf(0.3), steps=5, step_size=0.02, success=by_dice)
        boundary(linf(0.3), queries=40, goal=0.3)
        boundary(l2(3), queries=40, goal=0.3, spread=0.2, shrink=0.2, grid=4)
        boundary(linf(0.03), queries=60, goal=0.5)
        boundary(l2(0.3), queries=60, goal=0.6)
        square(linf(0.08), queries=30)
        square(l2(0.6), bce, queries=30, first=0.2)
        square(l2(0.6), progressive_bce, queries=20)
        spsa(linf(0.08), queries=40, directions=2, starts=3, grid=5)
        spsa(l2(0.6), progressive_bce, queries=30, directions=2, starts=0, grid=0, probe=0.3, step_size=0.3)
        zoo(linf(0.08), queries=40, coordinates=4, grid=3, starts=3)
        zoo(l2(0.6), progressive_bce, queries=30, coordinates=3, grid=0, starts=3, probe=0.3, step_size=2.0)
        fdua(queries=6)
        control fdua
        ssaa(linf(0.08), queries=8)
        local_search(pixels(0.05), queries=40, candidates=6, together=3)
        local_search(pixels(0.05), progressive_bce, queries=40, candidates=6, together=3)
        single_pixel(pixels(0.05), queries=60)
        single_pixel(pixels(0.05), progressive_bce, queries=40)
        control single_pixel(pixels(0.05))
        transfer(attack=pgd(linf(0.08), steps=3))
        transfer(attack=pgd(l2(0.6), steps=3), fuse='probabilities')
        transfer(attack=pgd(l2(0.6), steps=3), fuse='losses')
        transfer(attack=pgd(l2(0.6), progressive_bce, steps=3), fuse='losses')
        sweep transfer(attack=fgsm(linf(0.08)))
        adv_sbf(steps=3)
        affine(steps=3)
        affine(pose(0.5), steps=3)
        bef(steps=3)
        bef(objective=progressive_bce, steps=3, order=5)
        bef_pyramid(steps=3)
        cbef(steps=3)
        bias_field(steps=3)
        bias_field(steps=3, basis='polynomial', order=3)
        bias_field(steps=2, order=4)
        control bias_field
        deformation(steps=3)
        deformation_bias(steps=3)
        deformation_bias(tissue(0.5), steps=3)
        ghosting(steps=3)
        ghosting(steps=3, period=3)
        motion(steps=3)
        motion(trembling(2), steps=3, order=5)
        patch(area(0.05), steps=3, samples=2)
        patch(area(0.02), steps=2, samples=2)
        patch(area(0.08, margin=1), progressive_bce, steps=3, samples=2, degrees=40, scale=0.4)
        control patch(area(0.05))
        rician(steps=3)
        speckle(steps=3)
        vafa(steps=3)
        vafa(quantised(30, planes=True), progressive_bce, steps=3, least=2, ssim=0.5)
        vafa(quantised(60), steps=4, step_size=0.4, random_start=False)
        vafa(quantised(10, block=4, stretch=True), steps=3)
        vafa_hanif2023(steps=3)
        gibbs(steps=3)
        log_compression(steps=3)
        sharpness(steps=3)
        volume_bias(linf(0.08), steps=3)
        volume_bias(l2(0.6), 'dark', aim='smaller', steps=3)
        advgan(linf(0.08), steps=2)
        advgan(linf(0.08), steps=2, attention=True)
        advgan(linf(0.08), progressive_bce, steps=3)
        advgan(linf(0.08), steps=4, rate=0.03, realism=0.5)
        advgan(linf(0.08), toward(bce, another_patient), steps=3)
        fsra(linf(0.08), steps=2)
        gd_uap(linf(0.08), steps=4)
        trigger(stamp(side=3))
        control trigger(stamp(side=3))
        uap(linf(0.08), epochs=2)
        uap(l2(0.6), progressive_bce, epochs=2, momentum=0.5, whole_epochs=True, grid=(8, 6))
        uap(linf(0.08), epochs=2, grid=(8, 8), onto='tile')
        uap(linf(0.08), toward(bce, another_patient), epochs=2)
        uap_gaussian(linf(0.08))
        uap_gaussian(l2(0.6), deviation=0.3, draw=1)
        uap_metzen(linf(0.08), epochs=2)
        uap_metzen_dynamic(linf(0.08), 'dark', epochs=2)
        universal_volume(linf(0.08), epochs=2)
        universal_volume(l2(0.6), 'dark', aim='smaller', epochs=2)
    """,
    "classes": """
        pgd(linf(0.08), steps=3)
        fgsm(l2(0.6))
        apgd(linf(0.08), ce, steps=8)
        sea(linf(0.08), steps=9)
        parts sea(linf(0.08), steps=9)
        strongest(l2(0.6), gradients=5)
        for_organ(pgd(linf(0.08), steps=3), 'dark')
        alma_prox(steps=12, step_size=0.02, every=2, success=by_dice)
        alma_prox(steps=12, step_size=0.02, every=2, success=by_dice, goal=erase)
        asma(steps=15, step_size=0.01, least=0.01, success=by_dice(above=0.3))
        cw(steps=8, searches=2, step_size=0.03, price=0.05, success=by_dice)
        dag(steps=8, step_size=0.03, success=by_dice)
        deepfool(linf(0.9), steps=8, success=by_dice)
        jsma(l0(0.9), steps=8, share=0.02, success=by_dice)
        lbfgs(steps=5, searches=2, success=by_dice)
        pdpgd(linf(0.9), steps=12, success=by_dice)
        boundary(linf(0.3), queries=30, goal=0.3)
        patch(area(0.05), steps=3, samples=2)
        deformation(steps=3)
        uap(linf(0.08), epochs=2)
        uap_metzen_dynamic(linf(0.08), epochs=2)
        universal_volume(linf(0.08), epochs=2)
        volume_bias(linf(0.08), steps=3)
        advgan(linf(0.08), steps=2)
        gd_uap(linf(0.08), steps=3)
    """,
    "colours": """
        pgd(channels(linf(0.08), (1,)), steps=3)
        fgsm_wang2024(blend(0.2), swapped=False)
        noise(linf(0.08))
        corruption('rgb')
        contrast(contrast_loss(0.4))
        patch(area(0.05), steps=3, samples=2)
        local_search(pixels(0.05), queries=40, candidates=6, together=3)
        single_pixel(pixels(0.05), queries=40)
        jsma(l0(0.9), steps=6, share=0.02, success=by_dice)
        square(linf(0.08), queries=20)
        square(l2(0.6), queries=20)
        fdua(queries=4)
        bias_field(steps=3)
        vafa(quantised(10, planes=True), steps=3)
        uap(linf(0.08), epochs=2)
    """,
    "volume": """
        pgd(linf(0.08), steps=3, diversity=0.7, smooth=3)
        strongest(l2(0.8), gradients=10)
        mafl(linf(0.08), steps=3)
        boundary(linf(0.3), queries=30, goal=0.3)
        square(linf(0.08), queries=20)
        square(l2(0.8), queries=20)
        spsa(linf(0.08), queries=20, directions=2, starts=3, grid=5)
        zoo(linf(0.08), queries=20, coordinates=3, starts=3)
        fdua(queries=4)
        local_search(pixels(0.05), queries=30, candidates=5, together=3)
        single_pixel(pixels(0.05), queries=30)
        adv_sbf(steps=2)
        affine(steps=3)
        bef(steps=2)
        bef_pyramid(steps=2)
        bias_field(steps=2)
        bias_field(steps=2, basis='polynomial', order=3)
        deformation(steps=2)
        deformation_bias(steps=2)
        ghosting(steps=2)
        motion(steps=2)
        patch(area(0.05), steps=2, samples=2)
        rician(steps=2)
        speckle(steps=2)
        vafa(quantised(10, block=4), steps=2)
        vafa(quantised(10, block=4, planes=True), steps=2)
        vafa_hanif2023(steps=2)
        gibbs(zero_filling(0.6), steps=2)
        log_compression(steps=2)
        sharpness(steps=2)
        blur(blur_width(1.0))
        contrast(contrast_loss(0.4))
        noise(linf(0.08))
        corruption('ct')
        shuffled(pgd(linf(0.08), steps=2))
        insert(edit_area(0.9))
        remove(edit_area(0.9))
        uap(linf(0.08), epochs=2)
        advgan(linf(0.08), steps=2)
        gd_uap(linf(0.08), steps=3)
        jsma(l0(0.9), steps=6, share=0.02, success=by_dice)
    """,
    "edges": """
        pgd(l2(0.9), steps=3)
        pgd(within(linf(0.1), 'body'), steps=3)
        best_of((pgd(within(linf(0.1), 'body'), steps=3), apgd(within(linf(0.1), 'body'), steps=3)))
        apgd(l2(0.9), steps=4)
        padam(l2(0.9), steps=4)
        daa(l2(0.9), steps=3)
        mafl(l2(0.9), steps=3)
        strongest(l2(0.9), gradients=5)
        strongest(linf(0.1), gradients=5, unit='slice')
        fgsm_wang2024(blend(0.2), channels=1)
        noise(linf(0.1), draw='gaussian')
        blur(blur_width(1.0), bisections=3)
        contrast(contrast_loss(0.8), bisections=3)
        corruption('mri')
        dag(linf(0.9), steps=12, step_size=0.05, success=by_dice)
        alma_prox(linf(0.9), steps=14, step_size=0.05, every=2, success=by_pixels(0.7))
        pdpgd(linf(0.9), steps=20, success=by_dice, dual_step_size=0.4)
        cw(steps=8, searches=3, step_size=0.05, price=0.05, success=by_dice)
        lbfgs(steps=6, searches=3, success=by_dice)
        deepfool(l2(20), steps=8, success=by_dice)
        jsma(l0(0.9), steps=12, share=0.03, success=by_dice)
        boundary(linf(0.5), queries=30, goal=0.3)
        square(l2(0.9), queries=20)
        spsa(l2(0.9), queries=30, directions=2, starts=2, grid=0)
        zoo(l2(0.9), queries=30, coordinates=3, starts=2)
        fdua(queries=5)
        ssaa(linf(0.1), queries=8)
        local_search(pixels(0.05), queries=40, candidates=6, together=3)
        single_pixel(pixels(0.05), queries=40)
        single_pixel(within(pixels(0.05), 'body'), queries=40)
        adv_sbf(steps=3)
        bef(steps=3)
        bef_pyramid(steps=3)
        cbef(steps=3)
        bias_field(steps=3)
        bias_field(gain(0.9), steps=6)
        deformation_bias(steps=3)
        ghosting(steps=3)
        ghosting(ghost(1), steps=6, period=3)
        motion(steps=3)
        motion(trembling(4), steps=6)
        patch(area(0.05), steps=3, samples=2)
        rician(steps=3)
        rician(receiver(0.5), steps=6)
        speckle(steps=3)
        speckle(echo(0.5), steps=6)
        vafa(quantised(60), steps=3)
        gibbs(zero_filling(0.5), steps=3)
        log_compression(steps=3)
        log_compression(decibels(9), steps=3, knots=5)
        sharpness(steps=3, knots=5)
        uap(l2(0.9), epochs=2)
        gd_uap(l2(0.9), steps=3)
        uap_gaussian(l2(0.9))
        advgan(l2(0.9), steps=2)
        volume_bias(l2(0.9), steps=3)
    """,
    "wide edges": """
        insert(edit_area(0.9))
        remove(edit_area(0.9))
        remove(edit_area(0.9), elsewhere=True)
        inpaint(edit_area(0.9), steps=1)
        latent_edit(edit_area(0.9), steps=1, search=2)
    """,
    "wide alone": """
        insert(edit_area(0.9))
        inpaint(edit_area(0.9), 'insert', steps=1)
        mafl(linf(0.08), steps=3)
    """,
    "colour edges": """
        pgd(linf(0.08), steps=3)
        corruption('rgb')
        patch(area(0.05), steps=3, samples=2)
        local_search(pixels(0.05), queries=40, candidates=6, together=3)
        single_pixel(pixels(0.05), queries=40)
        jsma(l0(0.9), steps=6, share=0.02, success=by_dice)
        square(linf(0.08), queries=20)
        square(l2(0.9), queries=20)
        bias_field(steps=3)
        uap(linf(0.08), epochs=2)
    """,
    "volume edges": """
        pgd(linf(0.08), steps=3)
        local_search(pixels(0.05), queries=30, candidates=5, together=3)
        bias_field(steps=3)
        control deformation
        ghosting(ghost(0.5), steps=3)
        motion(trembling(3), steps=3)
        patch(area(0.05), steps=2, samples=2)
        control gibbs(zero_filling(0.6))
        control log_compression
        sharpness(steps=2)
        blur(blur_width(1.0))
        remove(edit_area(0.9))
    """,
    "watched edges": """
        evading(pgd(linf(0.08), steps=3))
        evading(ni_fgsm(linf(0.08), steps=4))
        orthogonal(pgd(linf(0.08), steps=4), share=0.1)
    """,
    "noisy": """
        averaged(pgd(linf(0.08), steps=2), passes=3)
        averaged(pgd(linf(0.08), steps=2), passes=1)
        averaged(bpda(pgd(linf(0.08), steps=2)), passes=2)
        averaged(bpda(dag(linf(0.9), steps=6, step_size=0.03, success=by_dice)), passes=3)
    """,
    "rounded": """
        pgd(linf(0.08), steps=2)
        bpda(pgd(linf(0.08), steps=2))
        bpda(pgd(linf(0.08), steps=2), everywhere=True)
    """,
    "watched": """
        evading(pgd(linf(0.08), steps=3))
        evading(pgd(linf(0.08), steps=3), weight=0.5)
        evading(ni_fgsm(linf(0.08), steps=4))
        evading(pgd(linf(0.08), progressive_bce, steps=3))
        hfc(pgd(linf(0.02), steps=4, random_start=False), weight=(0.01, 0.1))
        hfc(pgd(l2(0.2), steps=4, random_start=False), weight=0.3)
        hfc(pgd(linf(0.02), progressive_bce, steps=4, random_start=False), weight=0.1)
        feature_matching(pgd(linf(0.1), steps=4, step_size=0.1, random_start=False))
        feature_matching(pgd(l2(1), steps=4, step_size=0.1, random_start=False), guides=2)
        feature_matching(pgd(linf(0.1), progressive_bce, steps=4, step_size=0.1, random_start=False))
        orthogonal(pgd(linf(0.08), steps=4))
        orthogonal(pgd(linf(0.08), steps=4), share=0.1)
        orthogonal(pgd(linf(0.08), steps=4), share=0.1, projected=False)
        orthogonal(pgd(linf(0.08), progressive_bce, steps=4), share=1)
        selective(pgd(linf(0.08), steps=4), share=0.1)
    """,
    "prompted": """
        worst_prompt(prompts=4)
        worst_prompt(prompts=3, jitter=3.0)
    """,
    "wide": """
        insert(edit_area(0.9))
        insert(edit_area(0.9), 'bright', places=2)
        control insert(edit_area(0.9))
        remove(edit_area(0.9), 'bright')
        remove(edit_area(0.9), elsewhere=True)
        inpaint(edit_area(0.9), steps=2)
        inpaint(edit_area(0.9), steps=6, rate=0.005)
        inpaint(edit_area(0.9), 'insert', 'bright', steps=1)
        latent_edit(edit_area(0.9), steps=1, search=3)
        latent_edit(edit_area(0.9), 'remove', 'dark', 1, objective=progressive_bce, search=3, aim='believed', quiet=50)
        latent_edit(edit_area(0.9), steps=1, search=0)
        latent_edit(edit_area(0.9), steps=3, rate=0.02, search=3)
    """,
    "wide classes": """
        insert(edit_area(0.9), 'dark')
        remove(edit_area(0.9))
        inpaint(edit_area(0.9), 'insert', steps=1)
        latent_edit(edit_area(0.9), steps=1, search=3, aim='believed')
    """,
    "wide colours": """
        remove(edit_area(0.9))
        inpaint(edit_area(0.9), steps=1)
        insert(edit_area(0.9))
        latent_edit(edit_area(0.9), steps=1, search=2, quiet=50)
    """,
}
ENTRIES = [f"{scene}: {line.strip()}" for scene, lines in SPECS.items() for line in lines.strip().splitlines()]
ENTRIES += [f"ball on {scene}: {name}" for scene in ("slices", "edges") for name in registry.names("ball")]


def summary(change: Tensor) -> list[float]:
    """Numbers that see almost any change of a tensor: its mean size, and its sums along two waves."""
    places = torch.arange(change.numel(), dtype=torch.float64).view(change.shape)
    waves = (torch.cos(0.7 + 1.9 * places), torch.cos(1.1 * places**0.5))
    scale = change.numel() ** 0.5
    return [float(change.abs().mean()), *(float((change.double() * wave).sum()) / scale for wave in waves)]


def surrogate(scene: Scene, noise: int, share: float, task: Task) -> SegModel:
    """Another network: its maps count less, or more, beside the brightness."""
    model = scene.model(noise)
    with torch.no_grad():
        model.net.last *= share
    return model


def patients(scene: Scene, noise: int, numbers: Sequence[int]) -> list[Batch]:
    """Batches of other images, each of a patient of its own."""
    return [scene.batch(noise, number, f"patient{number}") for number in numbers]


def together(batches: Sequence[Batch]) -> Batch:
    """All of them in one batch."""
    return Batch.of([case for batch in batches for case in batch.cases])


def built(text: str, scene: Scene, noise: int) -> Attack:
    """The attack, with what no text can name: trained surrogates, a fitted detector, and what it learns itself."""
    attack: Any = registry.build(text, "attack")
    model = scene.model(noise)
    if isinstance(attack, Transfer):
        attack = replace(attack, surrogate=tuple(partial(surrogate, scene, noise, share) for share in (0.5, 1.5)))
    with frozen(model):
        if isinstance(attack, Evader):
            fit, calibration = (together(patients(scene, noise, range(*ends, 2))) for ends in ((20, 24), (30, 42)))
            attack = replace(attack, detector=calibrated("feature_squeezing", model, fit, calibration, 0.4))
        attack = bind(attack, scene.setting(noise))
        if isinstance(attack, Fittable):
            learned = attack.fit(model, patients(scene, noise, (12, 14)), seed=0)
            attack = bind(attack.with_learned(learned), scene.setting(noise))
    result: Attack = attack
    return result


def results(text: str, scene: Scene, noise: int) -> dict[str, list[float]]:
    """What is recorded of an attack, of its control, of the attacks that it runs, or of it in three balls at once."""
    word, _, rest = text.partition(" ")
    attack: Any = built(rest if word in ("control", "parts", "sweep") else text, scene, noise)
    attack = attack.control() if word == "control" else attack
    batch, setting = scene.batch(noise), scene.setting(noise)
    with frozen(scene.model(noise, attack.channels if isinstance(attack, FgsmWang2024) else None)) as model:
        counted = CountedModel(bind(model, setting))
        if word == "sweep":
            balls = [registry.with_eps(attack.ball, share * attack.ball.eps) for share in (0.5, 1.0, 0.75)]
            each = list(attack.sweep(counted, batch.image, batch.target, SEEDS, balls))
        else:
            attacks = attack.attacks if word == "parts" else [attack]
            each = [attack(counted, batch.image, batch.target, SEEDS) for attack in attacks]
    parts: dict[str, list[float]] = {"passes": [counted.forwards, counted.backwards]}
    for result in each:
        for name, values in numbers_of(result, batch.image).items():
            left_out = name == "harm" and all(map(isnan, values))  # of a sweep, which judges one result
            parts.setdefault(name, []).extend([] if left_out else values)
    return parts


def numbers_of(result: Adversarial, image: Tensor) -> dict[str, list[float]]:
    parts = {"change": summary(result.image - image), "harm": result.harm.tolist(), "size": result.size.tolist()}
    for name in ("flow", "success", "passes", "truth", "prompts"):
        value = getattr(result, name)
        if value is not None:
            parts["passes of each" if name == "passes" else name] = summary(value.double())
    return parts


def results_of_ball(name: str, scene: Scene, noise: int) -> dict[str, list[float]]:
    """What is recorded of a ball: how it moves, cuts, draws and measures."""
    scene = SCENES["colour edges" if scene.edges else "colours"] if name == "channels" else scene
    ball: Ball = bind(registry.build(name, "ball"), scene.setting(noise))
    ball = registry.with_eps(ball, 0.6 * ball.eps) if scene.edges else ball
    image = scene.batch(noise).image
    far, near = (image + share * drawn(*image.shape, seed=77) for share in (0.6, 0.002))
    cut = ball.project(far, image)
    flow = 0.3 * drawn(2, 2, *scene.shape, seed=78)
    sizes = [
        ball.size(cut, image),
        ball.size(near.clamp(0, 1), image),
        *([ball.length(flow)] if ball.moves_anatomy else []),
    ]
    return {
        "step": summary(ball.step(far - image, image)),
        "project": summary(cut - image),
        "sample": summary(ball.sample(image, SEEDS) - image),
        "size": [value for value in (*torch.cat(sizes).tolist(), ball.limit) if isfinite(value)],
        "pixels": [float(ball.free(image).sum()), float(ball.covered(cut, image).sum())],
        "declared": [float(ball.moves_anatomy), float(ball.restrictable)],
    }


def results_on(entry: str, noise: int) -> dict[str, list[float]]:
    """What is recorded of an entry, on one of the networks."""
    scene, _, text = entry.partition(": ")
    if scene.startswith("ball on "):
        return results_of_ball(text, SCENES[scene.removeprefix("ball on ")], noise)
    return results(text, SCENES[scene], noise)


def with_tolerance(entry: str) -> Recorded:
    """The numbers of an entry, and how far each may be off."""
    here, *others = (results_on(entry, noise) for noise in range(OTHERS + 1))
    recorded: Recorded = {}
    for name, values in here.items():
        spread = max((abs(v - w) for other in others for v, w in zip(values, other[name], strict=True)), default=0.0)
        within = max(WIDTH * spread, LEAST * max(map(abs, values), default=0.0))
        recorded[name] = [float(f"{value:.7g}") for value in values], float(f"{within:.1g}")
    return recorded


def unsteady(recorded: Recorded) -> list[str]:
    """The quantities that a processor's last bits may move too far."""
    return [name for name, (values, within) in recorded.items() if within > MOST * max(map(abs, values), default=0.0)]


@cache
def read() -> dict[str, Recorded]:
    content: dict[str, Recorded] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def test_every_attack_and_ball_is_recorded() -> None:
    known = {name for entry in ENTRIES for name in re.findall(r"[a-z_0-9]+", entry.partition(": ")[2])}
    # replay needs a run: cli/test_cli.py
    assert {*registry.names("attack"), *registry.names("ball")} - known == {"replay"}
    assert list(read()) == ENTRIES
    assert not any(unsteady(recorded) for recorded in read().values())


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_result_is_the_recorded_one(entry: str) -> None:
    recorded = read()[entry]
    now = results_on(entry, 0)
    assert list(now) == list(recorded)
    for name, (values, within) in recorded.items():
        assert now[name] == pytest.approx(values, abs=within, rel=0), name


def record(words: Sequence[str]) -> None:
    """Records what has one of these words in its name, or all; says which numbers are too unsteady."""
    old = read() if FILE.exists() else {}
    new = {}
    for entry in ENTRIES:
        chosen = not words or any(word in entry for word in words)
        new[entry] = with_tolerance(entry) if chosen or entry not in old else old[entry]
        if names := unsteady(new[entry]):
            print(f"{entry}: {', '.join(names)} depends on the last bits; give it fewer steps")
    lines = (f"{json.dumps(entry)}: {json.dumps(recorded)}" for entry, recorded in new.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(sys.argv[1:])
