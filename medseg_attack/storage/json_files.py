"""JSON that any reader knows: finite numbers of a sane length, each key once; and how two objects differ."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

from pydantic import BaseModel

from medseg_attack.errors import InputError, refusing
from medseg_attack.storage.files import whole, write_new
from medseg_attack.storage.forms import check_form
from medseg_attack.storage.paths import require_file

MOST_DIGITS = 300  # of a whole number in JSON; beyond it no float holds the number
DIGEST = "digest"  # field of the digest of all others


def claim_json(path: Path, content: dict[str, Any]) -> bool:
    """Writes JSON if there is no file yet; False if there is. Of processes that do so at once, one gets True."""
    return write_new(path, _json_text(content))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes sorted, indented JSON; not-a-number raises ValueError, since other readers do not know it."""
    with whole(path) as part:
        part.write_text(_json_text(content), encoding="utf-8")


def _json_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


@runtime_checkable
class _Scalar(Protocol):
    """A number of numpy's or torch's."""

    def item(self) -> float: ...


def plain(value: Any) -> Any:
    """The value with NaN and infinity as None, and numpy's and torch's numbers as Python's.

    >>> plain({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return plain(value.item()) if isinstance(value, _Scalar) else value


def load_json(path: Path) -> Any:
    """Reads JSON of any kind.

    Raises:
        InputError: the file is absent, is not JSON, or a number of it is of the wrong kind.
    """
    kinds = (OSError, ValueError, RecursionError)  # also of numbers with thousands of digits
    with refusing(f"a JSON file at {path}", "restore it, or name another", kinds):
        text = require_file(path, "a JSON file").read_text(encoding="utf-8-sig")
        return json.loads(
            text, parse_float=_finite, parse_int=_integer, parse_constant=_finite, object_pairs_hook=_distinct
        )


def read_json(path: Path, form: type[BaseModel] | None = None) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        form: the fields that it must have, with their types.

    Raises:
        InputError: the file is absent, is not a JSON object, or a field or number of it is of the wrong kind.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(content).__name__}; restore the file")
    return content if form is None else check_form(content, form, path)


def require_same_options(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to go on in a folder that was begun with other options or inputs.

    Args:
        stored: those that it was begun with.
        current: those of this call.

    Raises:
        InputError: they differ; the sentence names what differs, and nothing else.
    """
    if differing := differences(stored, current):
        raise InputError(
            f"expected the options and inputs that {folder} was begun with, got others ({'; '.join(differing)}); "
            "give another --out, or those of the folder to go on"
        )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The fields in which two JSON objects differ, at any depth, each with both values.

    >>> differences({"rho": 0.1, "poison": {"spec": "stamp"}}, {"rho": 0.1, "poison": {"spec": "iba"}})
    ['poison.spec: there stamp, here iba']
    >>> differences({"attacks": ["clean", "fgsm"]}, {"attacks": ["clean", "pgd"], "seed": 3})
    ['attacks: only there fgsm, only here pgd', 'seed: there none, here 3']
    """
    result = []
    for field in sorted({*stored, *current}):
        old, new = stored.get(field), current.get(field)
        if old == new:
            continue
        if (old or new) and all(value is None or isinstance(value, Mapping) for value in (old, new)):
            result += [f"{field}.{inner}" for inner in differences(old or {}, new or {})]
        elif _are_texts(old) and _are_texts(new) and {*old} ^ {*new}:
            parts = [("there", [each for each in old if each not in new]), ("here", [n for n in new if n not in old])]
            only = [f"only {place} {', '.join(map(_shown, items))}" for place, items in parts if items]
            result.append(f"{field}: {', '.join(only)}")
        else:
            result.append(f"{field}: there {_shown(old)}, here {_shown(new)}")
    return result


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(value: Any) -> str:
    """A value of a JSON object in a sentence: 12 characters of a hash, at most 120 of anything else."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text if len(text) <= 120 else f"{text[:117]}..."


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]}, which is not finite")
    return number


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; Python's own would keep the last of two values of one key without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r} twice in one object")
    return content


def digest(content: Any) -> str:
    """A hash of anything JSON can hold, the same on every machine (sha256, 64 hex digits).

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its digest in a field `digest`, by which a change of another field shows."""
    own = {key: value for key, value in content.items() if key != DIGEST}
    return own | {DIGEST: digest(own)}


def is_as_written(content: Mapping[str, Any]) -> bool:
    """Whether the content has the digest of `with_digest`, or none, as what earlier versions wrote.

    >>> content = with_digest({"seed": 1})
    >>> is_as_written(content), is_as_written(content | {"seed": 2}), is_as_written({"seed": 2})
    (True, False, True)
    """
    return DIGEST not in content or content == with_digest(content)
