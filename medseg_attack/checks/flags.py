"""Flags and the checks that raise them: a flag is declared once, on its check. No torch in here.

`checks.rows`, `checks.model` and `checks.probes` hold the checks, and `docs/flags.md` is made from them
(`checks.flags_page`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypeAlias

P = ParamSpec("P")


Verdict: TypeAlias = Literal["invalid", "upper bound on robustness", "note"]


SEVERITY: dict[Verdict, int] = {"invalid": 0, "upper bound on robustness": 1, "note": 2}


class Evidence(NamedTuple):
    """Grounds for raising a flag.

    Attributes:
        about: the case, attack or input concerned.
        numbers: the numbers that raise it, in a few words.
        run: folder of the run concerned; "" where it concerns all runs of the model.
    """

    about: str
    numbers: str
    run: str = ""


@dataclass(frozen=True)
class Flag:
    """A code with its meaning, which never changes; as a decorator it makes a check of a function.

    The function yields the evidence. Its docstring says the code and the condition, then, once per flag, an
    explanation and what to do.
    """

    code: str
    title: str
    verdict: Verdict
    todo: str

    def __call__(self, evidence: Callable[P, Iterator[Evidence]]) -> "Check[P]":
        return Check(self, evidence)


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
        flag = Flag(record["code"], record["title"], record["verdict"], record["todo"])
        return cls(flag, record["about"], record["seen"])


@dataclass(frozen=True)
class Check(Generic[P]):
    """A question that raises one flag."""

    flag: Flag
    evidence: Callable[P, Iterator[Evidence]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> list[Finding]:
        return [Finding(self.flag, *evidence) for evidence in self.evidence(*args, **kwargs)]


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without repetitions; what makes numbers invalid comes first."""
    return sorted(dict.fromkeys(findings), key=lambda finding: (SEVERITY[finding.flag.verdict], finding.code))
