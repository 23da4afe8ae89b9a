"""Names and what they stand for: every attack, ball, objective, model ... is registered under one.

Modules are imported on first look-up, so a new file in the folder of its kind is the only edit that a new name takes.
"""

import dataclasses
import functools
import importlib
import inspect
import keyword
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from medseg_attack.errors import InputError, close_matches, is_of_others, nearest, raised, require_within
from medseg_attack.registry.grammar import Items, Node, Spec

F = TypeVar("F", bound=Callable[..., Any])

KINDS: Mapping[str, str] = {  # to the folder of each kind
    "attack": "attacks",
    "objective": "threat/objectives",
    "goal": "threat/goals",
    "criterion": "threat/goals",
    "ball": "threat/balls",
    "poison": "threat/poisons",
    "model": "models",
    "network": "models/networks",
    "dataset": "data/datasets",
    "metric": "metrics",
    "factor": "evaluation/factors",
    "defence": "defences",
    "certificate": "certificates",
    "detector": "detectors",
}

VALUES = (
    "metric",
    "objective",
    "factor",
)  # kinds whose functions are used as they are; elsewhere a function is a factory


@dataclass(frozen=True)
class Bound:
    """A registered function with some of its options set; unlike a partial, equal to another with the same."""

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **dict(self.options))


@dataclass(frozen=True)
class Code:
    """Code that building a model runs.

    Attributes:
        call: the function that is called; "" of files that run when they are read.
        files: the files that the code is in, and those that it names.
    """

    call: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Entry:
    """A registered name, the object that it stands for, and facts that this states beyond its docstring.

    `paper`, `threat`, `norm` and `cost` are what `medattack ls attacks --explain` shows; "" leaves the first three to
    be read off the attack. `reaches` and `shown_by` are what `tests/test_optima.py` holds every attack to, on models
    that decide each pixel by its own value, of which the worst case can be written down. `cost` and `attacked_with` are
    what `medattack ls defences --explain` shows.

    Attributes:
        name: the name.
        kind: a key of `KINDS`.
        make: a class, a factory, or a function that is used as it is.
        paper: its authors and where it was published; otherwise what the docstring cites in brackets.
        threat: access that the attacker needs: "white box", "queries", "surrogate" ...; "" reads it off its passes.
        norm: norm of an attack that does not keep to every ball it gets, such as "l0" or "least l2".
        reaches: the optimum that an attack comes to. "all in eps": it flips the pixels within eps of the decision and
            no other. "within 1.02 of the least": its change is at most so many times the least that succeeds. "its
            ball": it flips nothing that a change in its ball could not flip. "nothing, as the truth moves along": on
            an image of two levels. "what is known in FILE, as ...": a test of its own.
        shown_by: spec that reaches it, of an attack whose defaults do not, or take long.
        trained: whether a model brings its weights.
        wraps: the field of a model that holds other models: the folder or spec of one, or a tuple of them.
        gathers: whether all arguments without a name are the items of the first field.
        code: the code that a model of these options runs when it is built, or None; None: no options make it run any.
        softmax: form of an objective per entry for classes that exclude each other; None: there the same one is used.
        exclusive: whether an objective is for classes that exclude each other alone.
        unweighted: the objective over all entries alike, of one that masks or weighs them.
        cost: passes that an attack takes for an image, a formula of its fields (`medseg_attack/registry/passes.py`),
            without those of a fit and of a detector that it knows; that a defence takes, for a training step or for
            an image; or that a detector takes for an image.
        attacked_with: spec of the attack that a defence is measured with, which knows it.
        bounds: the interval of each number, alone or in a tuple, among the options of a function, which is not called
            when it is built.
    """

    name: str
    kind: str
    make: Callable[..., Any]
    paper: str = ""
    threat: str = ""
    norm: str = ""
    reaches: str = ""
    shown_by: str = ""
    trained: bool = False
    wraps: str = ""
    gathers: bool = False
    code: Callable[[Mapping[str, Any]], Code | None] | None = None
    softmax: Callable[..., Any] | None = None
    exclusive: bool = False
    unweighted: Callable[..., Any] | None = None
    cost: str = ""
    attacked_with: str = ""
    bounds: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def fields(self) -> Mapping[str, inspect.Parameter]:
        """Parameters that a spec can set, by name, in order."""
        parameters = inspect.signature(self.make).parameters
        if self._is_value:  # tensors are not options
            return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        if dataclasses.is_dataclass(self.make):
            return {n: p for n, p in parameters.items() if n in option_names(self.make)}
        return {n: p for n, p in parameters.items() if n != "task" or self.kind != "model"}

    @property
    def _is_value(self) -> bool:
        return self.kind in VALUES and not inspect.isclass(self.make)

    @property
    def accepts_any_ball(self) -> bool:
        """Whether a norm may stand in for the attack's ball; a published variant's own ball is part of it."""
        return self.takes("ball") and not self.norm and known_as.get(type(self.default("ball"))) in ("linf", "l2")

    @property
    def doc(self) -> str:
        """Docstring of the object, without indentation."""
        return inspect.getdoc(self.make) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def family(self) -> str:
        """Name of the folder of its module: "gradient" of an attack in `attacks/gradient/`."""
        return self.package.rpartition(".")[2]

    @property
    def family_title(self) -> str:
        """First line of that folder's docstring, without the full stop."""
        return (inspect.getdoc(sys.modules[self.package]) or self.family).partition("\n")[0].rstrip(".")

    @property
    def package(self) -> str:
        """Dotted name of the package that its module lies in."""
        return self.make.__module__.rpartition(".")[0]

    def takes(self, field: str) -> bool:
        """Whether a spec can set the field."""
        return field in self.fields

    def default(self, field: str) -> Any:
        """The value of a field that a spec leaves open; `inspect.Parameter.empty` of one that must be set."""
        return self.fields[field].default

    def place(self, spec: Spec) -> dict[str, Node]:
        """The arguments of a spec by field.

        Raises:
            InputError: there are too many, one is of no field, or one stands twice; a name in them is not known.
        """
        if self.gathers and len(spec.positional) > 0 and not isinstance(spec.positional[0], Items):
            spec = replace(spec, positional=(Items(spec.positional),))
        if len(spec.positional) > len(self.fields):
            raise InputError(
                f"{self.name} takes {len(self.fields)} values, got {len(spec.positional)} in '{spec}'; drop some"
            )
        arguments = dict(zip(self.fields, spec.positional, strict=False))
        for field, node in spec.keywords:
            if field not in self.fields:
                raise InputError(
                    f"{self.name} has no field {field!r}; {self._within(field, spec) or nearest(field, self.fields)}"
                )
            if field in arguments:
                raise InputError(f"{self.name} got {field!r} twice in '{spec}'; drop one")
            arguments[field] = node
        for field, node in arguments.items():
            if isinstance(node, Spec) and node.name not in entries:
                find(node.name, kind_of(self.default(field)) or None)  # refuses it, with the names of the right kind
        return arguments

    def _within(self, field: str, spec: Spec) -> str:
        """The remedy for an option that stands beside the argument that it belongs to, or without it; "" for none."""
        if close_matches(field, self.fields):
            return ""
        nodes = [*(("", node) for node in spec.positional), *((f"{name}=", node) for name, node in spec.keywords)]
        owners = [(place, node.name) for place, node in nodes if isinstance(node, Spec) and node.name in entries]
        kinds = {name: kind_of(parameter.default) for name, parameter in self.fields.items()}
        owners += [(f"{name}=", other) for name, kind in kinds.items() if kind for other in names(kind)]
        for place, owner in owners:
            if entries[owner].takes(field):
                return f"it is one of {owner}: write {self.name}({place}{owner}({field}=...))"
        for place, owner in owners[: len(nodes)]:
            if close := close_matches(field, entries[owner].fields):
                return f"did you mean {close[0]} of {owner}: write {self.name}({place}{owner}({close[0]}=...))"
        return ""

    def instance(self, arguments: Mapping[str, Any]) -> Any:
        """The object of a spec with these arguments: a function, an object, or a model that waits for its task.

        Raises:
            InputError: an argument is missing, or its value is refused.
        """
        for name in self.bounds.keys() & arguments:
            for each, usual in _items(arguments[name], self.default(name)):
                require_within(name, each, self.bounds[name], usual)
        missing = [n for n, p in self.fields.items() if p.default is p.empty and n not in arguments]
        if missing and self.kind != "model":
            raise InputError(f"{self.name} needs {', '.join(missing)}, got {arguments or 'nothing'}; add it")
        if self._is_value or self.kind == "model":  # a model is built for a task, which its spec does not name
            return Bound(self.make, tuple(arguments.items())) if arguments else self.make
        try:
            value = self.make(**arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            why = raised(error) if is_of_others(error) else error
            raise InputError(f"{self.name}: {why}") from error
        if self.kind == "attack" and "ball" not in {*dir(type(value)), *vars(value)}:
            raise InputError(f"expected a ball of the attack {self.name}, got none; give it a field or property 'ball'")
        return value


def _items(value: Any, default: Any) -> list[tuple[Any, Any]]:
    """A number with its default, or each number of a tuple with the first of the default's."""
    return [(each, default[0]) for each in value] if isinstance(value, tuple) else [(value, default)]


entries: dict[str, Entry] = {}
known_as: dict[Any, str] = {}


def register(name: str, *, kind: str, **facts: Any) -> Callable[[F], F]:
    """Gives a function or a frozen dataclass its name; one namespace, so a name means one thing everywhere.

    Args:
        facts: further fields of its `Entry`: `paper`, `threat`, `norm`, `cost`, `reaches` and `shown_by` of an
            attack,
            `trained`, `wraps`, `gathers` and `code` of a model, `softmax`, `exclusive` and `unweighted` of an
            objective, `cost` and `attacked_with` of a defence, `paper` of a certificate, `paper` and `cost` of a
            detector, `bounds` of a function.

    Raises:
        InputError: when something is given it: the name is taken, or no name, or there is no such kind.
    """

    def add(make: F) -> F:
        taken, own = entries.get(name), f"{make.__module__}.{make.__qualname__}"
        if taken and f"{taken.make.__module__}.{taken.make.__qualname__}" != own:
            raise InputError(
                f"expected a name of its own for {own}, got {name!r}, the name of {taken.make.__module__}."
                f"{taken.make.__qualname__}; choose another for what is yours"
            )
        if not name.isidentifier() or keyword.iskeyword(name):  # no spec could hold it
            raise InputError(
                f"expected a name of letters, digits and _ for {own}, got {name!r}; choose one such as my_attack"
            )
        if kind not in KINDS:
            raise InputError(
                f"expected a kind among {', '.join(KINDS)} for {own}, got {kind!r}; {nearest(kind, KINDS)}"
            )
        entries[name] = Entry(name, kind, make, **facts)
        known_as[make] = name
        return make

    return add


@functools.cache
def load() -> None:
    """Imports every module in the folders of all kinds."""
    for folder in dict.fromkeys(KINDS.values()):
        package = importlib.import_module(f"medseg_attack.{folder.replace('/', '.')}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


OF_ITS_PROGRAM = "one of your own is known in the program alone that registers it: run the command there"


def find(name: str, kind: str | None = None) -> Entry:
    """The entry of a name.

    Raises:
        InputError: nothing is registered under it, or something of another kind.
    """
    load()
    entry = entries.get(name)
    if entry is not None and kind in (None, entry.kind):
        return entry
    if kind is None:
        raise InputError(
            f"unknown name: expected one that is registered, got {name!r}; write it in quotes if it is a text, such as "
            f"an organ, or look it up with 'medattack ls': {nearest(name, entries)}; {OF_ITS_PROGRAM}"
        )
    got = f"the {entry.kind} {name!r}" if entry else f"{name!r}"
    raise InputError(
        f"unknown {kind}: expected one that is registered, got {got}; {nearest(name, names(kind))}; "
        f"a new one is a file in medseg_attack/{KINDS[kind]}; {OF_ITS_PROGRAM}"
    )


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    load()
    return sorted(entry.name for entry in entries.values() if entry.kind == kind)


def brings_weights(text: str) -> bool:
    """Whether a spec is of a model that needs no training; False of the path of a checkpoint."""
    load()
    entry = entries.get(text.partition("(")[0].strip())
    return entry is not None and entry.trained


def option_names(value: Any) -> list[str]:
    """Names of the fields of a dataclass that can be set in a spec: those by which two of its kind differ."""
    return [field.name for field in dataclasses.fields(value) if field.init and field.compare]


def options_of(value: Any) -> dict[str, Any]:
    """Values of the fields of `option_names`, by name."""
    return {name: getattr(value, name) for name in option_names(value)}


def entry_of(value: Any) -> Entry | None:
    """The entry of a registered function, or of an instance of a registered class; None of anything else."""
    function = value.function if isinstance(value, Bound) else value
    name = known_as.get(function if inspect.isfunction(function) else type(function))
    return None if name is None else entries[name]


def kind_of(value: Any) -> str:
    """The kind of a registered object or of an instance of a registered class; "" of anything else."""
    entry = entry_of(value)
    return entry.kind if entry else ""
