"""The nouns: what is segmented, what is attacked, what an attack is and what it returns.

Shapes: `b` samples, `c` image channels, `k` classes, `*s` spatial, `(H, W)` or `(D, H, W)`. Code for both takes the
number of spatial axes from the shape. Images and `eps` are in [0, 1] of the case's `Window`, lengths in mm.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medseg_attack.errors import require

Image: TypeAlias = Float[Tensor, "b c *s"]  # in [0, 1]
Phase: TypeAlias = Literal["", "ED", "ES"]  # of the heart: end diastole, end systole; "" is not known
LogOdds: TypeAlias = Float[Tensor, "b k *s"]  # sigmoid(log_odds) is the probability, for every head
Mask: TypeAlias = Bool[Tensor, "b k *s"]  # one channel per class
PerSample: TypeAlias = Float[Tensor, "b"]
PerChannel: TypeAlias = float | tuple[float, ...]  # one number for every channel, or one for each where they differ
Prompts: TypeAlias = Float[Tensor, "b organs points 2"]  # x, y; the points of a box are two corners: `models.prompts`
Flow: TypeAlias = Float[Tensor, "b n *s"]  # one channel per spatial axis, in pixels; see `numerics.flows.warped`


NO_CLASS = "mean"  # the name of the average over classes in tables
T = TypeVar("T")
B = TypeVar("B", bound="Bindable")


@dataclass(frozen=True)
class Task:
    """A segmentation task: its classes, and the channels of its images.

    Attributes:
        name: name of the data set.
        classes: names in channel order; an exclusive task has "background" first.
        exclusive: True: one class per pixel (softmax); False: channels are independent and may overlap (sigmoid).
        channels: number of channels of a scan: 1 for CT and MRI; otherwise modalities, or red, green and blue.
        channel_names: a name for each; () where nobody named them.
    """

    name: str
    classes: tuple[str, ...]
    exclusive: bool = False
    channels: int = 1
    channel_names: tuple[str, ...] = ()

    @property
    def scored(self) -> range:
        """Indices of the classes that tables report: all but an exclusive task's background."""
        return range(1 if self.exclusive else 0, len(self.classes))

    @property
    def scored_channels(self) -> slice:
        """The classes that tables report, as a part of the channels of a mask; it copies nothing."""
        return slice(self.scored.start, self.scored.stop)

    def to_json(self) -> dict[str, Any]:
        """The task as JSON files hold it; `channel_names` is absent where nobody named the channels."""
        names = {"channel_names": list(self.channel_names)} if self.channel_names else {}
        required = {"name": self.name, "classes": list(self.classes)}
        return required | {"exclusive": self.exclusive, "channels": self.channels} | names

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Task":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: a field is absent, or is not of its type.
        """
        classes, channel_names = tuple(fields["classes"]), tuple(fields.get("channel_names", ()))
        return cls(fields["name"], classes, bool(fields["exclusive"]), int(fields["channels"]), channel_names)


@dataclass(frozen=True)
class Window:
    """The native intensities shown as 0 and 1: `eps * width` is `eps` in `unit`.

    Channels may have windows of their own; an `eps` is the same fraction of each.

    Attributes:
        low: intensity that is shown as 0.
        high: intensity that is shown as 1.
        unit: unit of both, such as "HU"; "" where it is not known.
    """

    low: PerChannel
    high: PerChannel
    unit: str = ""

    @property
    def width(self) -> PerChannel:
        """`high - low`; one number where that is the same for every channel."""
        n = max(len(end) if isinstance(end, tuple) else 1 for end in (self.low, self.high))
        ends = zip(per_channel(self.low, n), per_channel(self.high, n), strict=True)
        return alike([high - low for low, high in ends])


def per_channel(value: PerChannel, channels: int) -> tuple[float, ...]:
    """The number of each channel."""
    return value if isinstance(value, tuple) else (value,) * channels


def alike(values: Sequence[float]) -> PerChannel:
    """The inverse of `per_channel`: one number if all are the same.

    >>> alike([255.0, 255.0, 255.0]), alike([255.0, 1.0])
    (255.0, (255.0, 1.0))
    """
    return values[0] if len(set(values)) == 1 else tuple(values)


def common(value: PerChannel) -> float:
    """The number that all channels share; NaN where they differ."""
    return math.nan if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Stack:
    """The place of a slice in its scan.

    Attributes:
        index: number of the slice, from 0.
        slices: number of slices of the scan.
        spacing_mm: distance from the centre of one slice to that of the next.
    """

    index: int
    slices: int
    spacing_mm: float


@dataclass(frozen=True, eq=False)
class Storage:
    """The form in which a file holds an image: a native intensity is `stored * slope + inter`.

    It belongs to one case. `numerics.stored_values.StoredValues` is that of a batch, with the arithmetic, and
    `evaluation.rounding.RoundedModel` a model whose images take such values only.

    Attributes:
        stored: the file's values in the file's type, of the shape of the image.
        slope: native intensity of one stored step.
        inter: native intensity of a stored 0.
        limits: least and largest value that the file's bits hold; None for all of its type.
        order: the spatial axes of a whole scan's image as the file has them, from the slowest (z, y, x in ITK).
        flips: those of them that run against the file.
        padding: least and largest value that stands for no measurement; such pixels stay, and no other becomes one.
    """

    stored: Tensor
    slope: PerChannel = 1.0
    inter: PerChannel = 0.0
    limits: tuple[int, int] | None = None
    order: tuple[int, ...] = (0, 1, 2)
    flips: tuple[int, ...] = ()
    padding: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One image to attack and score, on the CPU and on the scan's own grid.

    Attributes:
        id: name of the case, unique in its data set.
        volume: name of the scan that a slice belongs to.
        group: name of the patient; splits and intervals never separate cases that share it.
        image: intensities in [0, 1].
        target: the true segmentation, one channel per class.
        spacing_mm: size of a pixel along each spatial axis of `image`, in their order.
        window: native intensities that the image shows as 0 and 1.
        stack: place of a slice; None for a whole scan, and for an image that has no neighbours.
        storage: form in which a file holds the image; None for an image that is in no file: it is attacked in floats.
        classes: names of the channels of `target`, where something asks for an organ by name.
        phase: of the heart, where the data set says it.
    """

    id: str
    volume: str
    group: str
    image: Float[Tensor, "c *s"]
    target: Bool[Tensor, "k *s"]
    spacing_mm: tuple[float, ...]
    window: Window
    stack: Stack | None = None
    storage: Storage | None = None
    classes: tuple[str, ...] = ()
    phase: Phase = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Cases of one shape, with their images and targets stacked."""

    image: Image
    target: Mask
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, cases: Sequence[Case], device: torch.device | str = "cpu") -> "Batch":
        """Stacks `cases` and copies them to `device` once, without waiting for the copy."""
        image, target = _stacked([case.image for case in cases]), _stacked([case.target for case in cases])
        if torch.device(device).type == "cuda":
            image, target = image.pin_memory(), target.pin_memory()
        return cls(image.to(device, non_blocking=True), target.to(device, non_blocking=True), tuple(cases))


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Tensors with an axis of samples; one alone, such as a volume, is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


@dataclass(frozen=True)
class CaseRef:
    """A slice or a whole scan that a `CaseSource` can read.

    Attributes:
        id: name of the case.
        volume: name of its scan.
        group: name of its patient.
        shape: rows, columns; of a whole scan slices, rows, columns.
        index: number of the slice in its scan, from 0; None: the whole scan, whose id is that of the scan.
        phase: of the heart, where the data set says it.
    """

    id: str
    volume: str
    group: str
    shape: tuple[int, ...]
    index: int | None = None
    phase: Phase = ""


@runtime_checkable
class CaseSource(Protocol):
    """Cases that are read one by one, such as a prepared data set."""

    def read(self, ref: CaseRef) -> Case: ...


@runtime_checkable
class Model(Protocol):
    """A segmentation network, as far as an attack can see it."""

    @property
    def task(self) -> Task: ...

    def __call__(self, image: Image) -> LogOdds: ...

    def decide(self, log_odds: LogOdds) -> Mask:
        """The segmentation of these log-odds: those >= 0, or the one-hot argmax of an exclusive task."""
        ...


class AroundModel:
    """A model that asks another one and decides as that one does; subclasses say what they change."""

    model: Model

    @property
    def task(self) -> Task:
        return self.model.task

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.model.decide(log_odds)


@dataclass(frozen=True, eq=False)
class Donors:
    """Cases whose masks a goal may take, and the source that reads them."""

    source: CaseSource
    refs: tuple[CaseRef, ...]


Backward: TypeAlias = Literal["own", "adapted", "smooth"]


@dataclass(frozen=True, eq=False)
class Setting:
    """Surroundings that an attack and its model are bound to.

    Attributes:
        task: classes and channels of the model.
        cases: the samples of the batch, in order; () where they are not known yet.
        donors: cases of other patients, whose masks a goal may take.
        stream: name of the random numbers that a randomised model draws: what an attack sees is drawn apart from what
            is scored.
        backward: gradient of a layer in front of the network: "own", or that of its smooth stand-in where its own is
            of no use ("adapted") or everywhere ("smooth").
        prompts: of a promptable model, in the place of those that it draws from the truth of the cases.
    """

    task: Task
    cases: tuple[Case, ...] = ()
    donors: Donors | None = None
    stream: str = "score"
    backward: Backward = "own"
    prompts: Prompts | None = None
    _computed: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def at(self, index: Int[Tensor, "n"]) -> "Setting":
        """The setting of some of the cases; what was computed for them is kept."""
        prompts = None if self.prompts is None else self.prompts[index.to(self.prompts.device)]
        return replace(self, cases=tuple(self.cases[i] for i in index.tolist()), prompts=prompts)

    def computed(self, key: Hashable, compute: Callable[..., T], *args: Any) -> T:
        """`compute(*args)`, which is called once for each `key`."""
        if key not in self._computed:
            self._computed[key] = compute(*args)
        value: T = self._computed[key]
        return value


@runtime_checkable
class Binds(Protocol):
    """A part of an attack, or a model, that must know its setting; `threat.binding.bind` finds it at any depth."""

    def bind(self, setting: Setting) -> Any:
        """A copy in this setting.

        Raises:
            InputError: the setting does not fit, such as a task without the organ that a goal names.
        """
        ...


@dataclass(frozen=True)
class Bindable:
    """A part of an attack that must know its setting: a base of frozen dataclasses.

    Attributes:
        setting: None until the part is bound; no option, and equal parts may have different ones.
    """

    setting: Setting | None = field(default=None, compare=False, repr=False, kw_only=True)

    def bind(self: B, setting: Setting) -> B:
        """A copy in that setting, prepared for it."""
        bound = replace(self, setting=setting)
        bound.prepare(setting)
        return bound

    def prepare(self, setting: Setting) -> None:
        """Refuses a setting that does not fit, and computes with `setting.computed` what every step needs."""


@runtime_checkable
class Objective(Protocol):
    """A function that the attacker climbs: differentiable, per sample, larger = worse for the model.

    `progress` in [0, 1] is the fraction of the attack that is done; most objectives ignore it.
    """

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample: ...


class Ball(ABC):
    """A set of images around an untouched one: a norm and a budget, as a value (a frozen dataclass).

    Attributes:
        moves_anatomy: whether the truth may become another one: a flow, whose `length` counts, or an edit.
        restrictable: whether the ball can be held to a region of the image.
        budgets: interval in which `eps` lies.
    """

    moves_anatomy: ClassVar[bool] = False
    restrictable: ClassVar[bool] = True
    budgets: ClassVar[str] = "[0, inf)"

    def __post_init__(self) -> None:
        require(self, eps=self.budgets)

    @property
    @abstractmethod
    def eps(self) -> float:
        """The budget, in [0, 1] of the image unless the ball has a unit of its own."""

    @property
    def limit(self) -> float:
        """The largest `size` that an honest attack reaches."""
        return self.eps

    @property
    def unit(self) -> str:
        """The unit of `eps`; "" is a fraction of the intensity window."""
        return ""

    @property
    def unrestricted(self) -> "Ball":
        """The ball on the whole image, where it is held to a region."""
        return self

    @abstractmethod
    def step(self, grad: Image, image: Image) -> Image:
        """The steepest move of size `eps` along `grad`, from `image`."""

    @abstractmethod
    def project(self, x: Image, x0: Image) -> Image:
        """The nearest point of the ball around `x0`, then of [0, 1]."""

    @abstractmethod
    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        """A random point of the ball; sample `i` depends on `seeds[i]` alone, on every device."""

    @abstractmethod
    def size(self, x: Image, x0: Image) -> PerSample:
        """The norm of `x - x0`, in the unit of `eps`; where anatomy moved, `x0` is the moved image."""

    def size_of_parts(self, parts: Iterable[tuple[Image, Image]]) -> PerSample:
        """The `size` of images that come in parts, pairs of `x` and `x0` cut along their first spatial axis.

        A norm of all pixels needs them together. A ball that can join the sizes of parts does so, at their memory.
        """
        changed, untouched = zip(*parts, strict=True)
        if len(changed) == 1:
            return self.size(changed[0], untouched[0])
        return self.size(torch.cat(changed, dim=2), torch.cat(untouched, dim=2))

    def length(self, flow: Flow) -> PerSample:
        """The size of a flow, in the unit of `eps`; infinite where anything moves and nothing may."""
        return torch.where(flow.flatten(1).any(1), math.inf, 0.0).to(flow)

    def total_size(self, x: Image, x0: Image, flow: Flow | None) -> PerSample:
        """The larger of `size` and the `length` of the flow that led to `x0`."""
        size = self.size(x, x0)
        return size if flow is None else torch.maximum(size, self.length(flow))

    def free(self, image: Image) -> Bool[Tensor, "b c *s"]:
        """The values of an image that may change."""
        return torch.ones_like(image, dtype=torch.bool)

    def shares_of(self, image: Image) -> Image:
        """The share of the budget that each value has: 1, but in channels with shares of their own."""
        return torch.ones_like(image)

    def covered(self, x: Image, x0: Image) -> Bool[Tensor, "b 1 *s"]:
        """The pixels that are not scored, because something lies on them."""
        return torch.zeros_like(x[:, :1], dtype=torch.bool)

    def clipped(self, change: Tensor) -> Tensor:
        """A change of no image yet, cut to the ball, each pixel to 1/2 at most, as if added to the middle of [0, 1]."""
        middle = torch.full_like(change, 0.5)
        return self.project(middle + change, middle) - middle


@dataclass(frozen=True, eq=False)
class Adversarial:
    """The result of an attack: images, how harmful they are to its judge, and how large the change is.

    Attributes:
        image: perturbed images in [0, 1].
        harm: score of each, larger = worse for the model: `metrics.harm`, or progress while a least change is searched.
        size: size of each change, in the unit of the ball's `eps`.
        flow: how anatomy moved; `numerics.flows.moved` of it is the truth on these images. None where nothing moved.
        success: whether an attack with a goal reached it; None for one without.
        passes: forward and backward passes that each sample took, of an attack that stops sample by sample; None
            where all took what the batch did.
        truth: the truth on these images, of an attack that adds or removes anatomy; None of any other.
        prompts: what a promptable model gets with these images, of an attack that chooses it; None of any other.
    """

    image: Image
    harm: PerSample
    size: PerSample
    flow: Flow | None = None
    success: Bool[Tensor, "b"] | None = None
    passes: Int[Tensor, "b 2"] | None = None
    truth: Mask | None = None
    prompts: Prompts | None = None

    def __or__(self, other: "Adversarial") -> "Adversarial":
        """Per sample the more harmful of the two; between equals, the smaller change.

        Associative, commutative up to ties in both, idempotent. Both sides must come from one judge on one model.
        """
        return self.where((other.harm > self.harm) | ((other.harm == self.harm) & (other.size < self.size)), other)

    def where(self, take: Bool[Tensor, "b"], other: "Adversarial") -> "Adversarial":
        """The other result in the samples of `take`, this one elsewhere; both were paid for."""
        return Adversarial(
            taken(take, other.image, self.image),
            taken(take, other.harm, self.harm),
            taken(take, other.size, self.size),
            _flow_taken(take, other.flow, self.flow),
            None if self.success is None or other.success is None else taken(take, other.success, self.success),
            None if self.passes is None or other.passes is None else self.passes + other.passes,
            None if self.truth is None or other.truth is None else taken(take, other.truth, self.truth),
            None if self.prompts is None or other.prompts is None else taken(take, other.prompts, self.prompts),
        )


def _flow_taken(take: Bool[Tensor, "b"], other: Flow | None, own: Flow | None) -> Flow | None:
    """Per sample the flow of one side; a side that moved no anatomy has one of 0."""
    if other is None and own is None:
        return None
    still = torch.zeros_like(own if other is None else other)  # type: ignore[arg-type]
    return taken(take, still if other is None else other, still if own is None else own)


def taken(take: Bool[Tensor, "b"], other: Tensor, own: Tensor) -> Tensor:
    """Per sample `other` where `take`, else `own`; where all samples come from one of them, that one, not a copy."""
    if take.device.type == "cpu" and other.shape == own.shape and other.dtype == own.dtype:  # a GPU is not waited for
        if take.all():
            return other
        if not take.any():
            return own
    return torch.where(take.view(-1, *(1 for _ in own.shape[1:])), other, own)


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass whose fields are its options and which has no other state."""

    @property
    def ball(self) -> Ball: ...

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial: ...


class AroundAttack:
    """An attack that runs another one inside, in the ball of that one; a base of frozen dataclasses."""

    attack: Attack

    @property
    def ball(self) -> Ball:
        return self.attack.ball

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return (self.attack,)


@runtime_checkable
class Sweeps(Protocol):
    """An attack that shares work among several balls."""

    def sweep(
        self, model: Model, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """The results in the order of `balls`, each as the attack in that ball alone has it; a harm that is NaN was
        not computed.
        """
        ...


@runtime_checkable
class SweepsObjectives(Sweeps, Protocol):
    """An attack that also shares work among several objectives.

    Attributes:
        objective: the one that it climbs.
        shares_pass: whether this one does.
    """

    objective: Objective

    @property
    def shares_pass(self) -> bool: ...

    def sweep_objectives(
        self,
        model: Model,
        image: Image,
        target: Mask,
        seeds: Sequence[int],
        sweeps: Sequence[tuple[Objective, Sequence[Ball]]],
    ) -> Iterator[Adversarial]:
        """The results of each objective in each of its balls, in order; otherwise as `Sweeps.sweep`."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """An attack that learns from some cases before it attacks others."""

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> Mapping[str, Tensor]:
        """Tensors that it learns, by name."""
        ...

    def with_learned(self, learned: Mapping[str, Tensor]) -> Attack:
        """The attack that uses them."""
        ...


@runtime_checkable
class Metric(Protocol):
    """One number per case and class, NaN where it is not defined; its name ends with its unit."""

    def __call__(self, pred: Mask, target: Mask, spacing_mm: Sequence[tuple[float, ...]]) -> Float[Tensor, "b k"]: ...
