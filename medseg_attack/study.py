"""A study: models x attacks x losses x budgets, from a YAML file, the command line or both."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medseg_attack import registry
from medseg_attack.errors import InputError, nearest


class Study(BaseModel):
    """What a study file may hold; every field is an option of `medattack attack` of the same meaning."""

    model_config = ConfigDict(extra="forbid")

    data: str | None = None
    models: list[str] = []
    attacks: list[str] = Field(default=["fgsm"], min_length=1)
    losses: list[str] = []
    eps: list[float] = []
    norm: Literal["linf", "l2"] | None = None
    steps: int | None = Field(default=None, ge=1)
    split: Literal["test", "val", "train", "all"] = "test"
    fold: int = Field(default=0, ge=0)
    limit: float | None = Field(default=None, gt=0)
    metrics: list[str] = []
    control: bool = True
    seed: int = 0

    @field_validator("models", "attacks", "losses", "eps", "metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("eps", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        return [parse_eps(str(item)) for item in (value if isinstance(value, list) else [value])]


def parse_eps(text: str) -> float:
    """A budget as a fraction of the image's range.

    Raises:
        InputError: not a number, negative, or a bare number of 1 and more.

    >>> parse_eps("0.01"), parse_eps("4/255") == 4 / 255
    (0.01, True)
    """
    match = re.fullmatch(r"\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*(?:/\s*([0-9.]+))?\s*", text)
    try:
        value = float(match[1]) / float(match[2] or 1) if match else float("nan")
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if value != value:
        raise InputError(f"expected eps as 0.01 or 4/255, got {text!r}; check it")
    if value < 0:
        raise InputError(f"expected eps >= 0, got {text}; the sign of an attack is not in its budget")
    if value >= 1:
        raise InputError(
            f"expected eps below 1, a fraction of the image's range, got {text}; for grey levels write {text}/255"
        )
    return value


def read_study(file: Path | None, flags: dict[str, Any]) -> Study:
    """The study in `file` with `flags` over it; a flag that is None or empty says nothing.

    Raises:
        InputError: not YAML, an unknown or ill-typed field; the sentence names it.
    """
    content: Any = {}
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"expected a study in YAML at {file}, got {error}; check the file") from error
        if not isinstance(content, dict):
            raise InputError(f"expected fields such as 'models: [unet]' in {file}, got {content!r}; check the file")
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    try:
        study = Study.model_validate(content | given)
    except ValidationError as error:
        raise InputError(_told(error, file)) from error
    if not study.models:
        raise InputError(f"expected models, got none{f' in {file}' if file else ''}; give --model NAME")
    return study


def _told(error: ValidationError, file: Path | None) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r} in {file}; {nearest(where, Study.model_fields)}"
    place = f" in {file}" if file else ""
    return f"{where}{place}: {first['msg'].lower()}, got {first['input']!r}; check it"


@dataclass(frozen=True)
class Cell:
    """One attack at one budget; `label` and `loss` are what tables show."""

    label: str
    loss: str
    eps: float
    attack: Any


def cells(study: Study) -> list[Cell]:
    """The product of attacks, losses and budgets, the noise control of every ball first; no attack twice.

    `losses`, `norm` and `steps` set that field of each attack that has it and does not set it itself.
    """
    made = [cell for text in study.attacks for cell in _of_attack(text, study)]
    if study.control:
        balls = dict.fromkeys(cell.attack.ball for cell in made if cell.attack.ball.eps > 0)
        noise = [registry.build("noise", "attack", {"ball": ball}) for ball in balls]
        made = [Cell(_noise_label(attack.ball), "", attack.ball.eps, attack) for attack in noise] + made
    return list({registry.spec(cell.attack): cell for cell in made}.values())


def _of_attack(text: str, study: Study) -> list[Cell]:
    name, given = registry.call(text)
    losses: Sequence[str | None] = [None]
    if registry.takes(name, "objective") and "objective" not in given:
        losses = study.losses or [None]
    budgets: Sequence[float | None] = study.eps or [None]
    overrides: dict[str, Any] = {"steps": study.steps} if study.steps else {}
    made = []
    for loss in losses:
        objective = {} if loss is None else {"objective": registry.build(loss, "objective")}
        for eps in budgets:
            ball = _ball(name, given, study.norm, eps)
            attack = registry.build(text, "attack", overrides | objective | ball)
            if eps is not None:
                attack = registry.with_eps(attack, eps)
            made.append(Cell(_label(name, given), _loss(attack), attack.ball.eps, attack))
    return made


def _ball(name: str, given: dict[str, Any], norm: str | None, eps: float | None) -> dict[str, Any]:
    if norm is None or "ball" in given or not registry.takes(name, "ball"):
        return {}
    ball = registry.build(norm, "ball")
    return {"ball": ball if eps is None else registry.with_eps(ball, eps)}


def _label(name: str, given: dict[str, Any]) -> str:
    """The attack as it was typed, less what the columns beside it say."""
    said = [f"{field}={registry.spec(value)}" for field, value in given.items() if field not in ("objective", "ball")]
    return f"{name}({', '.join(said)})" if said else name


def _noise_label(ball: Any) -> str:
    kind = registry.spec(registry.with_eps(ball, 0.0)).partition("(")[0]
    return "noise" if kind == "linf" else f"noise({kind})"


def _loss(attack: Any) -> str:
    return registry.spec(attack.objective) if hasattr(attack, "objective") else ""
