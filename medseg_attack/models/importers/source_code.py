"""Dependencies of the code behind a factory, read from its source: modules, files, variables. Nothing is run."""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medseg_attack.storage.paths import real_path

LONGEST = 255  # characters in the name of a file


@dataclass(frozen=True)
class Source:
    """A factory's code and what it names.

    Attributes:
        modules: the file of the factory, then those of the modules that it imports, without installed libraries.
        files: other files that their text names, relative to them or to the working directory.
        variables: environment variables that they read by name, sorted.
    """

    modules: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    variables: tuple[str, ...] = ()


def source_of(net: str) -> Source:
    """The code of `file.py:factory` or `package.module:factory`; of a module that is not there, no files."""
    text, _, _ = net.rpartition(":")
    search = _Search.of(text)
    modules: dict[Path, ast.Module] = {}
    waiting = list(search.start)
    while waiting:
        path = waiting.pop()
        if path not in modules:
            modules[path] = _tree(path)
            waiting += [file for name, level in _imports(modules[path]) for file in search.files(name, level, path)]
    files = {file for path, tree in modules.items() for file in _named_files(tree, path.parent)} - modules.keys()
    variables = {name for tree in modules.values() for name in _variables(tree)}
    return Source(tuple(modules), tuple(sorted(files)), tuple(sorted(variables)))


@dataclass(frozen=True)
class _Search:
    """Folders in which imports are looked for.

    Attributes:
        start: the files of the factory's own module and of the packages around it.
        roots: folders of modules that are no installed libraries.
        package: the installed package that the factory is in; "" of one that is not installed.
    """

    start: tuple[Path, ...]
    roots: tuple[Path, ...]
    package: str = ""

    @classmethod
    def of(cls, text: str) -> "_Search":
        libraries = [real_path(Path(sysconfig.get_path(name))) for name in ("stdlib", "purelib", "platlib")]
        folders = [real_path(Path(entry)) for entry in sys.path]
        own = [folder for folder in folders if folder.is_dir() and not any(folder.is_relative_to(p) for p in libraries)]
        if text.endswith(".py"):
            path = real_path(Path(text))
            return cls((path,) if path.is_file() else (), (path.parent, *own))
        for folder in folders:
            if files := _module_files(text, folder):
                return cls(files, tuple(own), "" if folder in own else text.partition(".")[0])
        return cls((), tuple(own))

    def files(self, name: str, level: int, importer: Path) -> tuple[Path, ...]:
        """The files of a module and of the packages around it; none of an installed library, or of this package."""
        if level:
            return _module_files(name, importer.parents[level - 1])
        top = name.partition(".")[0]
        if top == "medseg_attack":
            return ()
        installed = [Path(entry) for entry in sys.path] if top == self.package else []
        return next(filter(None, (_module_files(name, root) for root in (*self.roots, *installed))), ())


def _module_files(name: str, root: Path) -> tuple[Path, ...]:
    """The files of `a.b.c` below a folder: those of a, a.b and a.b.c; none if a.b.c is not there."""
    path, files = root, []
    for part in name.split("."):
        path = path / part
        file = next((file for file in (path / "__init__.py", path.with_name(f"{part}.py")) if file.is_file()), None)
        if file is None and not path.is_dir():
            return ()
        files.append(file)
    return tuple(file for file in files if file) if files[-1] else ()


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):  # Python will not run it, either
        return ast.Module([], [])


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of modules that are imported, perhaps names in modules, and how many packages up they are looked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module, node.level
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module else alias.name, node.level


def _named_files(tree: ast.Module, folder: Path) -> Iterator[Path]:
    """The files that texts in the code name, beside the code or in the working directory."""
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for text in texts:
        if text and len(text.encode(errors="replace")) <= LONGEST:
            yield from (real_path(path) for path in (folder / text, Path(text)) if path.is_file())


def _variables(tree: ast.Module) -> Iterator[str]:
    """Names in `os.environ["NAME"]`, `os.environ.get("NAME")` and `os.getenv("NAME")`."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=holder, slice=ast.Constant(value=str() as name)) if _last(holder) == "environ":
                yield name
            case ast.Call(func=ast.Attribute(value=holder), args=[ast.Constant(value=str() as name), *_]) if (
                _last(holder) == "environ"
            ):
                yield name
            case ast.Call(func=function, args=[ast.Constant(value=str() as name), *_]) if _last(function) == "getenv":
                yield name


def _last(node: ast.expr) -> str:
    """The last name of a dotted one."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
