"""`medattack explain`: what a flag means, and what to do about it."""

from typing import Annotated

import typer

from medseg_attack.cli import consoles, terminal
from medseg_attack.cli.options import Json
from medseg_attack.errors import InputError, nearest


@terminal.command
def explain(
    code: Annotated[str, typer.Argument(help="Code of a flag, such as MA007; all of them: medattack ls flags.")],
    json: Json = False,
) -> None:
    """Explain a flag: its verdict, what it means and what to do.

    Example: medattack explain MA007
    """
    from medseg_attack.checks.explanations import explanations

    known = explanations()
    if code.upper() not in known:
        raise InputError(f"expected the code of a flag, got {code!r}; {nearest(code.upper(), known)}")
    explanation = known[code.upper()]
    if json:
        terminal.print_json(explanation._asdict())
        return
    print(f"{explanation.code} {explanation.verdict} - {explanation.title}\n")
    for head, text in (
        ("Raised if", explanation.raised_if),
        ("Explanation", explanation.explanation),
        ("What to do", explanation.todo),
    ):
        consoles.out().print(f"{head}: {text}\n", markup=False)
