r"""Names as text: what a file, organ, case or model is called reaches an output through the function of that output.

A name comes from a file or from the command line. It may hold anything: markup, escape sequences of terminals, line
breaks, halves of characters. Each function below returns text that its output shows as the name. JSON needs none: its
writer escapes every character that is not plain ASCII. Rich's markup, such as `[red]`, needs none either:
`cli.terminal` and `report.sheet` never let it be parsed.

>>> visible("a\x1b[31mb\n"), markdown("a|b"), latex("50 %"), csv_cell("=1+1"), figure("$x$")
('a\\x1b[31mb\\n', 'a\\|b', '50 \\%', "'=1+1", '\\$x\\$')
"""

import re

# control characters, those that turn the direction of writing, separators of lines, halves of characters
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line's end it would begin an option
    "*": "{*}",
    "`": r"\textasciigrave{}",
} | {character: f"\\{character}" for character in "{}$&#_%"}

_FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001 - the wide forms begin a formula, too


def whole_characters(text: str) -> str:
    r"""The text with halves of characters, which names of files that are not UTF-8 have, as escape sequences.

    >>> whole_characters("a\udcff")
    'a\\udcff'
    """
    return text.encode(errors="backslashreplace").decode()


def visible(text: str) -> str:
    """Text for a terminal, XML or any other line of text: what cannot be seen is written as its escape sequence."""
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    r"""Text for GitHub's Markdown, also inside a cell of a table or at the beginning of a line.

    >>> markdown("0.5"), markdown("-0.5"), markdown("1. organ"), markdown("- organ")
    ('0.5', '-0.5', '1\\. organ', '\\- organ')
    """
    import html

    # an underscore between letters is no mark
    text = re.sub(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", visible(text).strip())
    text = re.sub(r"^(\d*)([-+.)](?=\s|-|$)|=)", r"\1\\\2", text)  # marks of lists, rules and headings; not 0.5 or -1
    return html.escape(text, quote=False)


def latex(text: str) -> str:
    """Text for LaTeX, also at the beginning of a cell."""
    text = "".join(_LATEX.get(character, character) for character in visible(text))
    return re.sub(r"(?<=([-',]))(?=\1)", "{}", text)  # two in a row would be another sign


def csv_cell(text: str) -> str:
    """Text for a cell of CSV; spreadsheets take no cell for a formula that begins with an apostrophe."""
    text = visible(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def figure(text: str) -> str:
    """Text for matplotlib, where dollars enclose mathematics and legends leave out what begins with an underscore."""
    text = visible(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def github(text: str) -> str:
    """Text for the message of a workflow command of GitHub."""
    return visible(text).replace("%", "%25")
