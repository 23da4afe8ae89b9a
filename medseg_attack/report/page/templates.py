"""The shared parts of all HTML files: templates that escape their values, a style, and a security policy."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_attack.errors import InputError
from medseg_attack.escaping import unbroken, visible, without_root
from medseg_attack.report.sheet import number, percent
from medseg_attack.storage.files import require_own

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

FOLDER = Path(__file__).parent
# nothing is fetched: what a browser may load stands in the page; a script runs if its hash is listed
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {}; base-uri 'none'; form-action 'none'"
)
# a word that a line of a phone may not hold, and where its parts are joined; "steps=40" and "4/255" stay whole
_LONG = re.compile(r"\S{15,}")
_JOINT = re.compile(r"(?<=\S[_(,=/:|])(?=[^\W\d_]|['\"])|(?<=\S_)(?=\d)")


def require_packages() -> None:
    """Refuses to begin where the packages of the extra `report` are not installed.

    Raises:
        InputError: one of them cannot be imported.
    """
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"expected the packages of the extra 'report', got none of the name {error.name}; install them: "
            "pip install 'medseg-attack[report]'"
        ) from error


def require_own_page(file: Path) -> None:
    """Refuses to overwrite what is no page of this package.

    Raises:
        InputError: the file holds something else.
    """
    require_own(file, re.compile(rb'<meta name="generator" content="medattack '))


def shown(text: str) -> str:
    """Text as pages show it: what is hidden is made visible, and the folders of the machine stay out."""
    return visible(without_root(text))


def breakable(text: str) -> "Markup":
    """Text as pages show it, escaped, whose lines may end between the parts of a long word.

    >>> breakable("pgd(steps=2) on patient004_frame01")
    Markup('pgd(steps=2) on patient004_<wbr>frame01')
    """
    from markupsafe import Markup, escape

    mark = "\u200b"  # no text as it is shown has one
    marked = _LONG.sub(lambda word: _JOINT.sub(mark, word[0]), unbroken(shown(text)))
    return escape(marked).replace(mark, Markup("<wbr>"))


def environment() -> "Environment":
    """The templates of `report/`, by their path in it; what they show is escaped, and what is hidden made visible."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    result = Environment(
        loader=FileSystemLoader(FOLDER.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
    )

    def lines(texts: Iterable[str]) -> Markup:
        """Texts below each other; a line break within one is made visible."""
        return Markup("\n").join(map(shown, texts))

    result.filters |= {"dice": number, "share": percent, "lines": lines, "breakable": breakable, "zip": zip}
    return result


def css() -> str:
    """The style of all pages."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")
