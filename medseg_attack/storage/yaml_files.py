"""YAML of plain fields: no tags, no aliases, each field once."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from medseg_attack.errors import InputError, reason, refusing
from medseg_attack.storage.forms import check_form
from medseg_attack.storage.paths import require_file

PIPED = 2**20  # characters that a pipe may bring


def read_yaml(path: Path, form: type[BaseModel] | None = None, *, may_be_pipe: bool = False) -> dict[str, Any]:
    """Reads fields in YAML, without tags and aliases; an empty file has none.

    Args:
        form: the fields that it must have, with their types.
        may_be_pipe: whether a person named the path, who may have meant a pipe, as in `--config <(...)`.

    Raises:
        InputError: the file is absent, was cut off, or holds something else.
    """
    kinds = (OSError, ValueError, RecursionError, yaml.YAMLError)  # also of numbers with thousands of digits
    with refusing(f"a study in YAML at {path}", "correct it there, or name another file", kinds, words=_words):
        if may_be_pipe and path.is_fifo():
            text = _piped(path)
        else:
            text = require_file(path, "a YAML file").read_text(encoding="utf-8-sig")
        content = yaml.load(text, Loader=_PlainLoader)
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(field, str) for field in content):
        raise InputError(
            f"expected fields such as 'models: [unet]' in {path}, got {type(content).__name__}; write fields"
        )
    return content if form is None else check_form(content, form, path)


def _words(error: BaseException) -> str:
    """An error of the parser in words, with its line and without the lines of the text around it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return reason(error)


def _piped(path: Path) -> str:
    """The text of a pipe; of one that nobody writes to, at once an error."""
    with open(path, encoding="utf-8-sig", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as pipe:
        os.set_blocking(pipe.fileno(), True)  # a writer that there is may take its time
        text = pipe.read(PIPED + 1)
    if not text:
        raise ValueError("a pipe that nobody writes to")
    if len(text) > PIPED:
        raise ValueError(f"more than {PIPED} characters from a pipe")
    return text


class _PlainLoader(yaml.SafeLoader):
    """A loader without aliases, of which a short text makes a list with billions of entries, and of decimal numbers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"the alias *{event.anchor}, where the value itself must stand")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            key, _ = Counter(key.value for key, _ in node.value).most_common(1)[0]
            raise yaml.YAMLError(f"the field {key!r} twice")
        return content

    def decimal(self, node: yaml.ScalarNode) -> float:
        """The number of a node; what YAML 1.1 takes for another one, such as 010 for 8 and 1:30 for 90, is refused."""
        number = self.construct_yaml_int(node) if node.tag == _INT else self.construct_yaml_float(node)
        if re.match("[-+]?0[0-9box]", node.value) or re.search("[:_]", node.value):
            raise yaml.YAMLError(
                f"the number {node.value}, which YAML takes for {number}; write it in decimals or quotes"
            )
        return number


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_PlainLoader.add_constructor(_INT, _PlainLoader.decimal)
_PlainLoader.add_constructor(_FLOAT, _PlainLoader.decimal)
