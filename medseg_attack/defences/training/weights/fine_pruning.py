"""Training without the channels that clean images do not use, where a backdoor may be."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError
from medseg_attack.models.networks.convolutions import widest
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.registry import register
from medseg_attack.runs.rows import Knowledge
from medseg_attack.types import Image


@register(
    "fine_pruning",
    kind="defence",
    paper="Liu et al., RAID 2018, arXiv 1805.12185",
    cost="1 forward, 1 backward",
    attacked_with="trigger(stamp)",
)
@dataclass(frozen=True)
class FinePruning(TrainingDefence):
    """Channels that clean images excite least are cut before the first step (Liu et al., RAID 2018, arXiv 1805.12185).

    It is meant for a network that may hold a backdoor, with clean scans of a few patients: `--init bad-model`. The
    channels are those of the widest convolutions, each ranked by the standard deviation of its output over the first
    batch. A cut channel is 0, and no step moves it. Then the training goes on and repairs what the cut has cost.

    An attacker who knows it uses the same rule (sec. 3.3 of the paper): a clean model is cut and goes on with poisoned
    data, so that the backdoor is in channels that clean images use. What the defence then cuts are the channels that
    are 0 already. The paper also gives these small weights again, which hides the cut from a look at the weights; that
    changes no answer and is not done here.

    Attributes:
        share: part of the channels of each of these layers that is cut, from 0 to below 1; the paper raises it until
            clean accuracy begins to fall.

    Raises:
        InputError: `share` is not from 0 to below 1, or the network has no convolutions.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError(f"expected a share of channels from 0 to below 1, got {self.share:g}; write share=0.5")

    def prepare(self, model: SegModel) -> None:
        if not widest(model):
            raise InputError("expected a network with convolutions for fine_pruning, got one without; take another")

    def knowledge(self, before: Sequence[TrainingDefence]) -> Knowledge:
        """Adaptive where the backdoor was trained in a network of which as many channels or more were cut."""
        knows = any(isinstance(rule, FinePruning) and rule.share >= self.share for rule in before)
        return "adaptive" if knows else "native"

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.share == 0:
            return step.loss(image, target)
        layers = widest(step.model)
        if not step.state:
            for n, deviation in enumerate(deviations(step.model, layers, image)):
                step.state[f"kept.{n}"] = kept(deviation, self.share)
            cut(layers, [step.state[f"kept.{n}"] for n in range(len(layers))])
        with _without(layers, [step.state[f"kept.{n}"] for n in range(len(layers))]):
            return step.loss(image, target)


def deviations(model: SegModel, layers: Sequence[nn.Module], image: Image) -> list[Tensor]:
    """The standard deviation of each channel of these layers, over images and pixels."""
    outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    with frozen(model), torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            hook = layer.register_forward_hook(lambda layer, inputs, output: outputs[layer].append(output.detach()))
            hooks.enter_context(hook)
        model(image)
    return [torch.cat(outputs[layer]).transpose(0, 1).flatten(1).std(1) for layer in layers]


def kept(deviation: Tensor, share: float) -> Tensor:
    """1 for each channel that stays and 0 for the `share` of them that vary least.

    >>> kept(torch.tensor([3.0, 1.0, 0.0, 2.0]), 0.5).tolist()
    [1.0, 0.0, 0.0, 1.0]
    """
    result = torch.ones_like(deviation)
    result[deviation.argsort(stable=True)[: round(share * len(deviation))]] = 0
    return result


def cut(layers: Sequence[nn.Module], masks: Sequence[Tensor]) -> None:
    """Sets the weights of the channels that do not stay to 0."""
    with torch.no_grad():
        for layer, mask in zip(layers, masks, strict=True):
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(mask.to(parameter).view(-1, *(1 for _ in parameter.shape[1:])))


@contextmanager
def _without(layers: Sequence[nn.Module], masks: Sequence[Tensor]) -> Iterator[None]:
    """A scope in which channels that do not stay are 0, so that their weights have no gradient."""

    def hook(mask: Tensor) -> object:
        return lambda layer, inputs, output: output * mask.to(output).view(1, -1, *(1 for _ in output.shape[2:]))

    with ExitStack() as hooks:
        for layer, mask in zip(layers, masks, strict=True):
            hooks.enter_context(layer.register_forward_hook(hook(mask)))  # type: ignore[arg-type]
        yield
