"""The reference: a page for each kind of registered name, one for the commands, one for `import medseg_attack`."""

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import groupby
from typing import Any

import griffe
import typer.main

import medseg_attack
from medseg_attack import registry
from medseg_attack.checks.attack_profile import profile
from medseg_attack.cli import app
from medseg_attack.cli.ls import KINDS
from medseg_attack.errors import plural
from medseg_attack.escaping import markdown
from medseg_attack.registry import Entry
from medseg_attack.registry.declared import Declaration, declarations, docstring
from medseg_attack.registry.table import KINDS as FOLDERS

TITLES = {"criterion": "Criteria", "dataset": "Data sets"}
PICTURE = (
    "![A slice of the phantom with its organs and what a small network predicts of them, before and after {0}, and the "
    "change](pictures/{0}.png)"
)
NAMED = ("attributes", "parameters")  # sections of names with a meaning each


def pages(drawn: Set[str] = frozenset()) -> dict[str, str]:
    """Text in Markdown by the page's name; `drawn` attacks have a picture beside the pages, in `pictures/`."""
    kinds = {page: kind for page, kind in KINDS.items() if kind in FOLDERS}
    others = {"commands": commands(), "library": library()}
    return {page: kind_page(kind, drawn) for page, kind in kinds.items()} | others


def kind_page(kind: str, drawn: Set[str] = frozenset()) -> str:
    """All names of a kind: by family, if the folder of the kind has several."""
    title = TITLES.get(kind, f"{kind.capitalize()}s")
    declared = sorted(declarations(kind), key=lambda each: (each.family != "controls", each.package, each.name))
    lines = [f"# {title}", "", described(docstring(f"medseg_attack.{FOLDERS[kind].replace('/', '.')}")), ""]
    lines += [f"{plural(len(declared), 'name')}. `medattack ls {_listing(kind)}` lists them in a terminal.", ""]
    families = [(family, list(members)) for family, members in groupby(declared, key=lambda each: each.package)]
    for _, members in families:
        if len(families) > 1:
            lines += [f"## {members[0].family_title}", ""]
        for each in members:
            lines += [f"{'###' if len(families) > 1 else '##'} {each.name} {{ #{each.name} }}", ""]
            lines += _member(each, registry.find(each.name, kind))
            if kind == "attack" and each.name in drawn:
                lines += [PICTURE.format(each.name), ""]
    return "\n".join(lines) + "\n"


def _listing(kind: str) -> str:
    return next(page for page, each in KINDS.items() if each == kind)


def _member(declared: Declaration, entry: Entry) -> Iterator[str]:
    """What a name stands for, how it is written, and its facts."""
    yield from (described(declared.doc), "")
    text = f"{declared.name}({declared.options_line})" if declared.options else declared.name
    yield from ("```text", text, "```", "")
    facts = {title: text for title, text in _facts(declared, entry).items() if text not in ("", "-")}
    yield from _rows(list(facts), [[_cell(text) for text in facts.values()]])
    yield ""


def _facts(declared: Declaration, entry: Entry) -> dict[str, str]:
    """Paper, access, norm and cost, as far as the kind has them, and the file."""
    where = {"file": f"`{entry.make.__module__.replace('.', '/')}.py`"}
    paper = {"paper": declared.paper}
    if entry.kind == "attack":
        facts = profile(entry.name, {each.name: each for each in declarations("attack")})
        return {**paper, "must know": facts["threat"], "norm": facts["norm"], "passes": facts["passes"], **where}
    if entry.kind == "defence":
        return {**paper, "passes": entry.cost, "attacked with": f"`{entry.attacked_with}`", **where}
    return {**paper, "passes": entry.cost, **where}


def described(doc: str) -> str:
    """A docstring of Google's style in Markdown: its sections are tables."""
    parts = []
    for section in griffe.parse_google(griffe.Docstring(doc), warnings=False):
        if section.kind.value in NAMED:
            pairs = [(element.name, element.description) for element in section.value]
            parts.append(_table(["option", "meaning"], pairs))
        elif section.kind.value == "raises":
            parts.append(_table(["raises", "if"], [(str(each.annotation), each.description) for each in section.value]))
        elif section.kind.value == "examples":
            parts += [f"```pycon\n{text}\n```" for _, text in section.value]
        elif section.kind.value == "admonition":  # any other heading, above lines of `name: meaning`
            pairs = [text.split(": ", 1) for text in re.split(r"\n(?! )", section.value.description)]
            parts.append(f"**{section.title}**\n\n{_table(['option', 'meaning'], pairs)}")
        elif section.kind.value == "text":
            parts.append(section.value)
    return "\n\n".join(parts)


def _table(heads: Sequence[str], pairs: Iterable[Sequence[str]]) -> str:
    """Names in the first column, their meaning in the second."""
    return "\n".join(_rows(heads, [[f"`{name}`", _cell(meaning)] for name, meaning in pairs]))


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(row)} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def commands() -> str:
    """Every command with its arguments and options, from the command line itself."""
    program: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "Every command prints this with `--help`. Names in capitals are arguments.", ""]
    for name, command in program.commands.items():
        text, *examples = re.split(r"\n+\s*Example: ", command.help)
        lines += [f"## medattack {name} {{ #{name} }}", "", " ".join(text.split()), ""]
        for example in examples:
            line, _, more = example.partition("\n\n")
            lines += ["```sh", line.strip(), "```", "", " ".join(more.split()), ""]
        cells = ([_words(option), _default(option), markdown(option.help or "")] for option in command.params)
        lines += [*_rows(["option", "default", "meaning"], cells), ""]
    return "\n".join(lines) + "\n"


def _words(option: Any) -> str:
    if option.param_type_name == "argument":
        return f"`{(option.metavar or option.name).upper()}`"
    return " ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    """What is done without the option: in words if the option says so, nothing for one that is off."""
    if isinstance(option.show_default, str):
        return markdown(option.show_default)
    if option.required:
        return "needed"
    if option.default is True:
        return f"`{option.opts[0]}`"
    return "" if option.default in (None, "", ()) or option.default is False else f"`{option.default}`"


def library() -> str:
    """The names of `import medseg_attack as ma`, from their docstrings."""
    intro = "The names of `import medseg_attack as ma`. [Use from Python](../docs/python.md) shows them at work."
    lines = ["# Library", "", intro, ""]
    for name, module in medseg_attack._NAMES.items():
        lines += [f"::: medseg_attack.{module}.{name}", "    options:"]
        lines += [f"      heading: ma.{name}", f"      toc_label: ma.{name}", ""]
    return "\n".join(lines) + "\n"
