"""Names with their options and summaries, read off the source: a listing need not wait until torch is loaded.

A default is read if it is made of numbers, strings, tuples, constants and calls of registered classes, as every default
of this package is: a test compares what is read here with what is loaded, name by name.
"""

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from medseg_attack.registry.grammar import Items, Literal, Node, Spec
from medseg_attack.registry.specs import node_of
from medseg_attack.registry.table import KINDS, VALUES, Entry, find, names

ROOT = Path(__file__).parents[1]
_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef
_OPERATIONS: Mapping[type[ast.operator], Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


_CITATION = re.compile(r"\(([^()]*(?:arXiv|doi|ICLR|CVPR|ICCV|ECCV|MICCAI|AISec)[^()]*)\)")


class UnreadableError(Exception):
    """A declaration that only running it can tell."""


@dataclass(frozen=True)
class Declaration:
    """A registered name as its source declares it; see `Entry`.

    Attributes:
        package: dotted name of the package that its file lies in.
        doc: its docstring.
        facts: the arguments of `register` that are literals.
        options: defaults by field, in order; None of a field without one.
    """

    name: str
    kind: str
    package: str
    doc: str
    facts: Mapping[str, Any]
    options: Mapping[str, Node | None]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def paper(self) -> str:
        """Its paper: what it is registered with, or what its docstring cites in brackets."""
        return self.facts.get("paper") or cited(self.doc)

    @property
    def options_line(self) -> str:
        """The options with their defaults, as one line."""
        return ", ".join(name if node is None else f"{name}={node}" for name, node in self.options.items())

    @property
    def family(self) -> str:
        """Name of the folder of its file."""
        return self.package.rpartition(".")[2]

    @property
    def family_title(self) -> str:
        """First line of that folder's docstring, without the full stop."""
        return docstring(self.package).partition("\n")[0].rstrip(".") or self.family


def declarations(kind: str) -> list[Declaration]:
    """All declarations of a kind, by name; loaded if one of them is no plain expression."""
    try:
        return read(kind)
    except UnreadableError:
        return [_loaded(find(name)) for name in names(kind)]


def _loaded(entry: Entry) -> Declaration:
    options = {
        name: None if parameter.default is parameter.empty else node_of(parameter.default)
        for name, parameter in entry.fields.items()
    }
    return Declaration(entry.name, entry.kind, entry.package, entry.doc, vars(entry), options)


def read(kind: str) -> list[Declaration]:
    """All declarations of a kind, by name, from the source alone.

    Raises:
        UnreadableError: one of them, or a default in it, is no plain expression.
    """
    result = []
    for module, source in _sources():
        if f'kind="{kind}"' not in source:
            continue
        if source.count("@register(") > len(re.findall(r"^@register\(", source, re.MULTILINE)):
            raise UnreadableError(f"names that a function of {module} registers")
        for definition in _scope(module).definitions():
            declared = _register(definition)
            if declared is not None and declared[1] == kind:
                result.append(_declaration(module, definition))
    return sorted(result, key=lambda declaration: declaration.name)


@functools.cache
def _sources() -> list[tuple[str, str]]:
    """Modules in the folders of all kinds, and their sources."""
    files = {file for folder in set(KINDS.values()) for file in (ROOT / folder).rglob("*.py")}
    names = {file: ".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in files}
    return [(name.removesuffix(".__init__"), file.read_text(encoding="utf-8")) for file, name in names.items()]


def cited(doc: str) -> str:
    """The paper that a docstring cites in brackets; "-" if there is none."""
    citation = _CITATION.search(doc)
    return re.sub(r"\s+", " ", citation[1]) if citation else "-"


def docstring(module: str) -> str:
    """The docstring of a module of this package, without indentation."""
    return inspect.cleandoc(ast.get_docstring(_scope(module).tree, clean=False) or "")


@dataclass(frozen=True)
class _Scope:
    """The meaning of a module's names: a definition, an expression, or a name of another module."""

    tree: ast.Module

    def definitions(self) -> Iterator[_Definition]:
        for statement in self.tree.body:
            if isinstance(statement, _Definition):
                yield statement

    @functools.cached_property
    def names(self) -> Mapping[str, ast.expr | _Definition | tuple[str, str]]:
        names: dict[str, ast.expr | _Definition | tuple[str, str]] = {}
        for statement in self.tree.body:
            match statement:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    names[name] = statement
                case ast.ImportFrom(module=str() as module, names=aliases):
                    names |= {alias.asname or alias.name: (module, alias.name) for alias in aliases}
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                ):
                    names[name] = value
        return names


@functools.cache
def _scope(module: str) -> _Scope:
    path = ROOT.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    source = file.read_text(encoding="utf-8")
    try:
        return _Scope(ast.parse(_outline(source)))
    except SyntaxError:
        return _Scope(ast.parse(source))


def _outline(source: str) -> str:
    """The source without the bodies of methods and plain functions, which are most of it and of no concern here."""
    lines: list[str] = []
    skipped: tuple[str, ...] = ()  # what lines begin with that belong to the function before
    for line in source.split("\n"):
        if skipped and (not line or line.startswith(skipped)):
            continue
        skipped = ()
        if line.startswith("    def "):
            skipped, line = ("     ", "    )"), "    def _(): ..."
        elif line.startswith("def ") and not (lines and lines[-1].startswith(("@", ")"))):  # one that is not registered
            skipped, line = (" ", ")"), f"{line.partition('(')[0]}(): ..."
        lines.append(line)
    return "\n".join(lines)


def _lookup(module: str, name: str) -> tuple[str, ast.expr | _Definition]:
    """The module that defines a name, and what it stands for there."""
    meaning = _scope(module).names.get(name)
    if isinstance(meaning, tuple):
        if not meaning[0].startswith("medseg_attack."):
            raise UnreadableError(f"{name} of {meaning[0]}")
        return _lookup(*meaning)
    if meaning is None:
        raise UnreadableError(f"{name} in {module}")
    return module, meaning


def _register(definition: _Definition) -> tuple[str, str, dict[str, Any]] | None:
    """Name, kind and facts that a definition is registered with; None if it is not."""
    for decorator in definition.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="register"), args=[ast.Constant(value=str() as name)], keywords=keywords):
                facts: dict[str, Any] = {
                    str(each.arg): each.value.value for each in keywords if isinstance(each.value, ast.Constant)
                }
                return name, facts.pop("kind"), facts
    return None


@functools.cache
def _declaration(module: str, definition: _Definition) -> Declaration:
    declared = _register(definition)
    if declared is None:
        raise UnreadableError(f"{definition.name} in {module}, which is not registered")
    name, kind, facts = declared
    if isinstance(definition, ast.ClassDef):
        fields, keywords = _fields(module, definition)
        options = {field: _default(*default) for field, default in (fields | keywords).items()}
    else:
        options = _parameters(module, definition, kind)
    doc = inspect.cleandoc(ast.get_docstring(definition, clean=False) or "")
    return Declaration(name, kind, module.rpartition(".")[0], doc, facts, options)


def _parameters(module: str, definition: ast.FunctionDef, kind: str) -> dict[str, Node | None]:
    """Parameters that a spec can set, of a function."""
    arguments = definition.args
    pairs = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    if kind not in VALUES:
        positional = [*arguments.posonlyargs, *arguments.args]
        without: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
        pairs = [*zip(positional, [*without, *arguments.defaults], strict=True), *pairs]
    names = {argument.arg: default for argument, default in pairs if (argument.arg, kind) != ("task", "model")}
    return {name: _default(module, default) for name, default in names.items()}


_Fields = dict[str, tuple[str, ast.expr | None]]


def _fields(module: str, definition: ast.ClassDef) -> tuple[_Fields, _Fields]:
    """Fields of a dataclass that a spec can set, with the module and the expression of the default.

    Those that are set by keyword alone are the second part: they stand behind all others, of subclasses, too.
    """
    fields: _Fields = {}
    keywords: _Fields = {}
    for base in reversed(definition.bases):
        if isinstance(base, ast.Name):
            try:
                of_base, meaning = _lookup(module, base.id)
            except UnreadableError:  # a class of another package has no fields
                continue
            if isinstance(meaning, ast.ClassDef):
                more, more_keywords = _fields(of_base, meaning)
                fields, keywords = fields | more, keywords | more_keywords
    if not any("dataclass" in ast.dump(decorator) for decorator in definition.decorator_list):
        return fields, keywords
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if "ClassVar" in ast.dump(annotation):
                    continue
                facts = _field_facts(value)
                if facts.get("init", True) and facts.get("compare", True):
                    default = facts.get("default") if isinstance(value, ast.Call) and facts else value
                    (keywords if facts.get("kw_only") else fields)[name] = (module, default)
    return fields, keywords


def _field_facts(value: ast.expr | None) -> dict[str, Any]:
    """Arguments of a call of `field`, constants by value but for the default; {} of anything else."""
    match value:
        case ast.Call(func=ast.Name(id="field"), keywords=keywords):
            return {
                str(each.arg): each.value.value
                if isinstance(each.value, ast.Constant) and each.arg != "default"
                else each.value
                for each in keywords
            }
    return {}


def _default(module: str, expression: ast.expr | None) -> Node | None:
    return None if expression is None else _node(module, expression)


def _node(module: str, expression: ast.expr) -> Node:
    """The text of an expression's value in a spec."""
    match expression:
        case ast.Constant(value=value):
            return node_of(value)
        case ast.UnaryOp() | ast.BinOp():
            return node_of(_number(module, expression))
        case ast.Tuple(elts=items):
            return Items(tuple(_node(module, item) for item in items))
        case ast.Name(id=name):
            defined_in, meaning = _lookup(module, name)
            if isinstance(meaning, ast.expr):
                return _node(defined_in, meaning)
            return Spec(_declaration(defined_in, meaning).name)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            defined_in, meaning = _lookup(module, name)
            if isinstance(meaning, ast.ClassDef):
                declaration = _declaration(defined_in, meaning)
                values = dict(zip(declaration.options, args, strict=False))
                values |= {str(keyword.arg): keyword.value for keyword in keywords}
                nodes = {field: _node(module, values[field]) for field in declaration.options if field in values}
                shown = ((field, node) for field, node in nodes.items() if node != declaration.options[field])
                return Spec(declaration.name, (), tuple(shown))
    raise UnreadableError(f"{ast.unparse(expression)} in {module}")


def _number(module: str, expression: ast.expr) -> float:
    match expression:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(module, operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return float(_OPERATIONS[type(op)](_number(module, left), _number(module, right)))
    node = _node(module, expression)
    if isinstance(node, Literal) and isinstance(node.value, int | float):
        return node.value
    raise UnreadableError(f"{ast.unparse(expression)} in {module}")
