r"""Names as text: what a file, organ, case or model is called reaches an output through the function of that output.

A name comes from a file or from the command line. It may hold anything: markup, escape sequences of terminals, line
breaks, halves of characters. Each function below returns text that its output shows as the name. JSON needs none: its
writer escapes every character that is not plain ASCII. Rich's markup, such as `[red]`, needs none either:
`cli.terminal` and `report.sheet` never let it be parsed.

>>> visible("a\x1b[31mb\n"), markdown("a|b"), latex("50 %"), csv_cell("=1+1"), figure("$x$")
('a\\x1b[31mb\\n', 'a\\|b', '50 \\%', "'=1+1", '\\$x\\$')
"""

import re
import shlex
from collections.abc import Iterable

from rich.cells import cell_len

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
# a string in a spec or in a sentence, as `repr` writes it, that holds a path
_QUOTED_PATH = re.compile(r"""(?<![^(=,:\s\[])(['"])((?:(?!\1)[^\\\n]|\\.)*[/\\](?:(?!\1)[^\\\n]|\\.)*)\1""")
_ROOT = re.compile(r"(?:~|[A-Za-z]:)?[/\\]")
_ABSOLUTE_PATH = re.compile(r"(?<![^\s(=,:])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\",;)\]]+){2,}")
# spaces at which no line ends: between a number and its unit, and around a sign of order
_WITHIN = re.compile(r"(?<=\d) (?=(?:%|mm|ml|HU|dB|MB|s)(?!\w))|(?<=[<>]) (?=\d)|(?<=\w) (?=[<>] \d)")


def whole_characters(text: str) -> str:
    r"""The text with halves of characters, which names of files that are not UTF-8 have, as escape sequences.

    >>> whole_characters("a\udcff")
    'a\\udcff'
    """
    return text.encode(errors="backslashreplace").decode()


def visible(text: str) -> str:
    """Text for a terminal, XML or any other line of text: what cannot be seen is written as its escape sequence."""
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shell(word: str) -> str:
    """A word of a command line; in double quotes if it has single ones, as specs do.

    >>> print(shell("unet"), shell("own('net.py:build')"))
    unet "own('net.py:build')"
    """
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


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


def _last_parts(path: str, keep: int) -> str:
    return "/".join([part for part in re.split(r"[/\\]+", path) if part][-keep:])


def without_folders(text: str, keep: int = 1) -> str:
    """Text whose quoted paths end in their last parts alone.

    Args:
        keep: how many parts of each path are kept.

    >>> without_folders("transfer(surrogate='/home/me/models/unet', attack=pgd(linf(4/255)))")
    "transfer(surrogate='unet', attack=pgd(linf(4/255)))"
    """
    return _QUOTED_PATH.sub(lambda match: f"{match[1]}{_last_parts(match[2], keep)}{match[1]}", text)


def without_root(text: str) -> str:
    """Text whose quoted paths from the root end in their last part alone: the folders of the machine stay out.

    >>> without_root("own('/home/me/net.py:build', weights='a/net.pth')")
    "own('net.py:build', weights='a/net.pth')"
    """
    return _QUOTED_PATH.sub(lambda match: without_folders(match[0]) if _ROOT.match(match[2]) else match[0], text)


def without_absolute_paths(text: str) -> str:
    """A sentence whose paths from the root, quoted or not, end in their last part alone.

    >>> without_absolute_paths("expected a folder, got none in /home/me/data; give another (4/255)")
    'expected a folder, got none in data; give another (4/255)'
    """
    return _ABSOLUTE_PATH.sub(lambda match: _last_parts(match[0], 1), without_root(text))


def distinct_without_folders(names: Iterable[str]) -> dict[str, str]:
    """Names by the names that they stand for, without folders, but for those that tell two of them apart.

    >>> list(distinct_without_folders(["own('/a/b/net.pth')", "own('/a/c/net.pth')"]).values())
    ["own('b/net.pth')", "own('c/net.pth')"]
    """
    full = list(dict.fromkeys(names))
    depth = max((len(re.split(r"[/\\]", name)) for name in full), default=1)
    short = full
    for keep in range(1, depth + 1):
        short = [without_folders(name, keep) for name in full]
        if len(set(short)) == len(full):
            break
    return dict(zip(full, short, strict=True))


def unbroken(text: str) -> str:
    r"""The text with spaces at which no line ends between a number and its unit, and around a sign of order.

    >>> unbroken("60 % of all, p < 0.05")
    '60\xa0% of all, p\xa0<\xa00.05'
    """
    return _WITHIN.sub("\xa0", text)


def parts(text: str) -> list[str]:
    """The parts of a text between the spaces at which no line ends.

    >>> parts("60 % of all")
    ['60', '% of all']
    """
    return _WITHIN.split(text)


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text, at most `width` columns wide unless a word is longer; a number stays with its unit.

    >>> wrap("that 60 % of all fail, p < 0.05", 9)
    ['that 60 %', 'of all', 'fail,', 'p < 0.05']
    """
    lines = [""]
    for word in unbroken(text).split(" "):
        if lines[-1] and cell_len(f"{lines[-1]} {word}") > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return [line.replace("\xa0", " ") for line in lines]
