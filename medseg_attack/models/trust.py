"""Trust in code: a file that is data may name code only if the person who runs it trusted that very code before.

What a person writes on the command line or in Python is run. What a checkpoint, a study file or a run names is run if
its files are listed in the workspace by their hash, or are to be listed now (`--trust`). The list is signed with a key
in the person's own folder, so that a workspace that came from somebody trusts nothing.
"""

import hmac
import os
import secrets
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from medseg_attack.errors import InputError
from medseg_attack.registry import Code, Spec, find, parse, parse_call
from medseg_attack.registry.grammar import Items, Literal
from medseg_attack.registry.table import entries, load
from medseg_attack.storage.files import file_hash, whole
from medseg_attack.storage.json_files import digest, read_json, write_json

LIST = "trusted.json"
SHOWN = 3  # files that a sentence names


@dataclass(frozen=True)
class _Trust:
    """Code that files may name.

    Attributes:
        workspace: folder with the list of what was trusted before; None: nothing was.
        extends: whether other code is trusted, too, and is added to the list.
    """

    workspace: Path | None = None
    extends: bool = False


NOTHING = _Trust()
_trust: ContextVar[_Trust] = ContextVar("trust", default=NOTHING)


def use_trust(workspace: Path | None, extends: bool) -> None:
    """Sets which code files may name from now on.

    Args:
        workspace: folder with the list of what was trusted before; None: nothing was.
        extends: whether other code is trusted, too, and is added to that list.
    """
    _trust.set(_Trust(workspace, extends))


def refuse_untrusted(texts: Iterable[str], source: Path) -> None:
    """Does nothing if specs that stand in a file run no code when they are built, or trusted code alone.

    Args:
        texts: specs of models or of what has models in it, and names of models.
        source: the file.

    Raises:
        InputError: it would run other code; the sentence names its files.
    """
    for text, code in chain.from_iterable(map(code_in, texts)):
        if not _is_trusted(text, code):
            files = ", ".join(str(path) for path in code.files[:SHOWN]) or "a module that is not there"
            more = f" and {len(code.files) - SHOWN} more" if len(code.files) > SHOWN else ""
            raise InputError(
                f"expected no code in {source} but what you trusted, got {text}, which would run {files}{more}; read "
                "that code and add --trust if you trust it, or leave that file alone"
            )


def code_in(text: str) -> Iterator[tuple[str, Code]]:
    """Every part of a spec that runs code when it is built, with that code; nothing of what is no spec."""
    load()
    try:
        spec = parse(text)
    except InputError:  # a path: nothing is built from it
        return
    for part in spec.walk():
        entry = entries.get(part.name)
        code = entry.code(parse_call(part)[1]) if entry and entry.code else None
        if code is not None:
            yield str(part), code
        for name in names_in(part, entry.wraps) if entry and entry.wraps else ():
            yield from code_in(name)


def names_in(spec: Spec, field: str) -> Iterator[str]:
    """The texts in a field of a spec: names or folders of models, or their specs in quotes."""
    node = find(spec.name).place(spec).get(field)
    for item in node.items if isinstance(node, Items) else (node,):
        if isinstance(item, Literal) and isinstance(item.value, str):
            yield item.value


def _is_trusted(text: str, code: Code) -> bool:
    trust = _trust.get()
    if trust.workspace is None:
        return trust.extends
    path = trust.workspace / LIST
    known = read_json(path) if path.is_file() else {}
    content = digest([code.call, sorted(file_hash(file) for file in code.files)])
    signature = hmac.new(_key(), content.encode(), "sha256").hexdigest() if known or trust.extends else ""
    if signature in known:
        return True
    if trust.extends:
        write_json(path, known | {signature: text})
    return trust.extends


def _key() -> bytes:
    """The person's own key, which is made when it is needed first."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "medattack" / "key"
    if not path.is_file():
        with whole(path) as part:
            part.touch(mode=0o600)
            part.write_text(secrets.token_hex(32), encoding="ascii")
    return path.read_bytes()
