"""The page `docs/flags.md`, written from the declarations of flags.

python -m medseg_attack.checks.flags_page > docs/flags.md
"""

import inspect
import textwrap
from itertools import chain
from typing import Any, NamedTuple

from medseg_attack.checks import certified, model_profile, probes
from medseg_attack.checks.flags import Check, checks_in
from medseg_attack.checks.model import answers, gradients, images
from medseg_attack.checks.rows import limits, strength, validity

_INTRODUCTION = """\
# Flags

<!-- Made by python -m medseg_attack.checks.flags_page from the docstrings of the checks: edit those. -->

`medattack attack` looks at each model and a few cases before it runs, and at the rows afterwards. What it finds is
printed below the table, stored in each `run.json` (`flags`) and part of `--json`. What is found before a run is kept
beside the runs in `checks.json`. The look before costs about as much as attacking ten to twenty more cases;
`--no-checks` leaves both out, and `run.json` then says so (`checks`). `medattack evaluate` looks as well, but at no
gradient. No flag is no proof of robustness.

A flag has a code that never changes its meaning, and a verdict:

- **invalid**: the number does not mean what the table says; mend the cause before reporting.
- **upper bound on robustness**: somebody who tries harder gets further; report it as a bound, or try harder.
- **note**: true, but to be said beside the number.

Comparisons of runs are paired over the scored units: a difference counts if it is more than 0.005 of Dice and more
than twice its standard error.
"""


def checks() -> dict[str, list[Check[Any]]]:
    """All checks, by the code that they raise, in the order of codes."""
    by_code: dict[str, list[Check[Any]]] = {}
    modules = (answers, gradients, images, model_profile, probes, validity, strength, limits, certified)
    for check in chain.from_iterable(map(checks_in, modules)):
        by_code.setdefault(check.flag.code, []).append(check)
    return dict(sorted(by_code.items()))


def page() -> str:
    """The text of `docs/flags.md`."""
    flags = explanations().values()
    table = [f"| {flag.code} | {flag.verdict} | {flag.title} |" for flag in flags]
    sections = map(_section, flags)
    return "\n".join([_INTRODUCTION, "| code | verdict | title |", "| --- | --- | --- |", *table, "", *sections])


class Explanation(NamedTuple):
    """A flag in words, without line breaks: see `Flag`, and the docstrings of its checks."""

    code: str
    verdict: str
    title: str
    raised_if: str
    explanation: str
    todo: str


def explanations() -> dict[str, Explanation]:
    """The explanation of every flag, by its code."""
    return {code: _explanation(raised_by) for code, raised_by in checks().items()}


def _explanation(raised_by: list[Check[Any]]) -> Explanation:
    flag = raised_by[0].flag
    conditions, texts = zip(*(_parts(check) for check in raised_by), strict=True)
    (text,) = (text for text in texts if text)
    condition = "; or ".join(text.removesuffix(".") for text in conditions)
    meaning, todo = text.split("\n\nWhat to do: ")
    return Explanation(flag.code, flag.verdict, flag.title, f"{condition}.", meaning, todo)


def _section(flag: Explanation) -> str:
    paragraphs = [f"*Raised if* {flag.raised_if}", f"*Explanation* {flag.explanation}", f"*What to do* {flag.todo}"]
    head = f"### {flag.code} - {flag.title}\n\nVerdict: **{flag.verdict}**."
    return "\n\n".join([head, *map(_filled, paragraphs)]) + "\n"


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False)


def _parts(check: Check[Any]) -> tuple[str, str]:
    """The condition and the rest of a check's docstring; in the rest each paragraph is a line."""
    paragraphs = [" ".join(text.split()) for text in inspect.cleandoc(check.evidence.__doc__ or "").split("\n\n")]
    code, _, condition = paragraphs[0].partition(": ")
    assert code == check.flag.code, f"the docstring of {check.evidence.__name__} speaks of {code}"
    return condition, "\n\n".join(paragraphs[1:])


if __name__ == "__main__":
    print(page(), end="")
