"""The page `docs/flags.md`, written from the declarations of flags.

python -m medseg_attack.checks.flags_page > docs/flags.md
"""

import textwrap

from medseg_attack.checks.explanations import Explanation, explanations

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


def page() -> str:
    """The text of `docs/flags.md`."""
    flags = explanations().values()
    table = [f"| {flag.code} | {flag.verdict} | {flag.title} |" for flag in flags]
    sections = map(_section, flags)
    return "\n".join([_INTRODUCTION, "| code | verdict | title |", "| --- | --- | --- |", *table, "", *sections])


def _section(flag: Explanation) -> str:
    paragraphs = [f"*Raised if* {flag.raised_if}", f"*Explanation* {flag.explanation}", f"*What to do* {flag.todo}"]
    head = f"### {flag.code} - {flag.title}\n\nVerdict: **{flag.verdict}**."
    return "\n\n".join([head, *map(_filled, paragraphs)]) + "\n"


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(page(), end="")
