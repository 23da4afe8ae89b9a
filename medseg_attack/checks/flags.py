"""Flags, and how one is declared: once, on the check that raises it. The checks are in other files. No torch.

The file of a check says when it is asked; in a file, checks stand in the order of their codes:

- after a run, from its rows: `checks.rows`, which asks every check in it;
- before a run, without an attack: `checks.model`; `needs` of the flag says what the model must give to be asked;
- before a run, by attacking a few cases: `checks.probes`; `preflight` or `_try_harder` also calls the check;
- after `medattack certify`, from its rows: `checks.certified`.

The decorator is the verdict: `invalid`, `upper_bound` or `note`. A second check of the same flag is decorated with the
flag of the first: `@check_too_few_steps.flag`. After a change, `python -m medseg_attack.checks.flags_page >
docs/flags.md` writes the page.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypeAlias

P = ParamSpec("P")
Verdict: TypeAlias = Literal["invalid", "upper bound on robustness", "note"]
Needs: TypeAlias = Literal["nothing", "a gradient", "a gradient, and the same answer twice"]
SEVERITY: dict[Verdict, int] = {"invalid": 0, "upper bound on robustness": 1, "note": 2}


class Evidence(NamedTuple):
    """Grounds for raising a flag.

    Attributes:
        about: the case, attack or input concerned.
        numbers: the numbers that raise it, in a few words.
        run: folder of the run concerned; "" where it concerns all runs of the model.
        todo: what to do instead of what the flag says; "" where that is right.
    """

    about: str
    numbers: str
    run: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Flag:
    """A code with its meaning, which never changes; as a decorator it makes a check of a function.

    The function yields the evidence. Its docstring says the code and the condition, then, once per flag, an
    explanation and what to do.

    Attributes:
        needs: what a check before the run asks of the model beside an answer.
    """

    verdict: Verdict
    code: str
    title: str
    todo: str
    needs: Needs = field(default="nothing", compare=False)

    def __call__(self, evidence: Callable[P, Iterator[Evidence]]) -> "Check[P]":
        return Check(self, evidence)


invalid = partial(Flag, "invalid")
upper_bound = partial(Flag, "upper bound on robustness")
note = partial(Flag, "note")


@dataclass(frozen=True)
class Finding:
    """A flag that was raised, and the evidence: see `Evidence`."""

    flag: Flag
    about: str
    numbers: str
    run: str = ""

    @property
    def code(self) -> str:
        return self.flag.code

    @property
    def sentence(self) -> str:
        """The finding as it is printed; docs/flags.md explains the codes."""
        flag = self.flag
        return f"{flag.code} {flag.verdict} - {self.about}: {flag.title} ({self.numbers}); {flag.todo}"

    def record(self) -> dict[str, str]:
        """The fields that run.json and checks.json store."""
        flag = self.flag
        return {
            "code": flag.code,
            "verdict": flag.verdict,
            "title": flag.title,
            "about": self.about,
            "seen": self.numbers,
            "todo": flag.todo,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Finding":
        """The finding that `record` stored; its flag is the one that was raised then."""
        flag = Flag(record["verdict"], record["code"], record["title"], record["todo"])
        return cls(flag, record["about"], record["seen"])


@dataclass(frozen=True)
class Check(Generic[P]):
    """A question that raises one flag."""

    flag: Flag
    evidence: Callable[P, Iterator[Evidence]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> list[Finding]:
        return [
            Finding(replace(self.flag, todo=todo or self.flag.todo), about, numbers, run)
            for about, numbers, run, todo in self.evidence(*args, **kwargs)
        ]


def checks_in(module: ModuleType) -> list[Check[Any]]:
    """The checks that a module declares, not those that it imports, in the order of its text."""
    checks = [value for value in vars(module).values() if isinstance(value, Check)]
    return [check for check in checks if check.evidence.__module__ == module.__name__]


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without repetitions; what makes numbers invalid comes first."""
    return sorted(dict.fromkeys(findings), key=lambda finding: (SEVERITY[finding.flag.verdict], finding.code))
