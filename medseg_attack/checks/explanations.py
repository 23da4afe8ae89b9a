"""Every flag in words, read off the source of the checks: no command waits for torch to print them."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from medseg_attack.checks.flags import Flag, invalid, note, upper_bound

DECORATORS = {"invalid": invalid, "upper_bound": upper_bound, "note": note}


class Explanation(NamedTuple):
    """A flag in words, without line breaks: see `Flag`, and the docstrings of its checks."""

    code: str
    verdict: str
    title: str
    raised_if: str
    explanation: str
    todo: str


def explanations() -> dict[str, Explanation]:
    """The explanation of every flag, by its code, in the order of codes."""
    functions = {function.name: function for function in _functions()}
    docstrings: dict[Flag, list[str]] = {}
    for function in functions.values():
        flag = _flag(function, functions)
        if flag is not None:
            docstrings.setdefault(flag, []).append(ast.get_docstring(function) or "")
    by_code = sorted(docstrings.items(), key=lambda item: item[0].code)
    return {flag.code: _explanation(flag, of_checks) for flag, of_checks in by_code}


def _functions() -> Iterator[ast.FunctionDef]:
    """The functions of this package, file by file."""
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef):
                yield statement


def _flag(function: ast.FunctionDef, functions: Mapping[str, ast.FunctionDef]) -> Flag | None:
    """The flag that a check raises: its own, `@invalid("MA001", ...)`, or that of another, `@check_slope.flag`."""
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(
                func=ast.Name(id=name), args=[ast.Constant(value=str() as code), ast.Constant(value=str() as title), *_]
            ) if name in DECORATORS:
                return DECORATORS[name](code, title, "")
            case ast.Attribute(value=ast.Name(id=name), attr="flag"):
                return _flag(functions[name], functions)
    return None


def _explanation(flag: Flag, docstrings: list[str]) -> Explanation:
    conditions, texts = zip(*(_parts(flag.code, docstring) for docstring in docstrings), strict=True)
    (text,) = (text for text in texts if text)
    condition = "; or ".join(text.removesuffix(".") for text in conditions)
    meaning, todo = text.split("\n\nWhat to do: ")
    return Explanation(flag.code, flag.verdict, flag.title, f"{condition}.", meaning, todo)


def _parts(code: str, docstring: str) -> tuple[str, str]:
    """The condition and the rest of a check's docstring; in the rest each paragraph is a line."""
    paragraphs = [" ".join(text.split()) for text in inspect.cleandoc(docstring).split("\n\n")]
    its_code, _, condition = paragraphs[0].partition(": ")
    assert its_code == code, f"the docstring of a check of {code} speaks of {its_code}"
    return condition, "\n\n".join(paragraphs[1:])
