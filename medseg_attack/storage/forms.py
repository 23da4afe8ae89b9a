"""Fields of JSON and YAML files with their types, checked before anything uses them."""

from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg_attack.errors import InputError

MOST = 10**15  # a larger count, size or time is none that somebody took
Count: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Form(BaseModel):
    """Fields of a JSON or YAML file with their types; further fields may stand in the file."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class TaskForm(Form):
    """A task as a card or a prepared data set holds it."""

    name: str
    classes: list[str] = Field(min_length=1)
    exclusive: bool
    channels: int = Field(1, ge=1, le=10_000)
    channel_names: list[str] = Field(default_factory=list)


def check_form(content: dict[str, Any], form: type[BaseModel], path: Path) -> dict[str, Any]:
    """The content of a file, if its fields are those of a form.

    Raises:
        InputError: a field is absent, or not of its type.
    """
    try:
        form.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        got = "none" if first["type"] == "missing" else f"{first['input']!r:.60}"
        raise InputError(
            f"expected the field {field!r} in {path} as medattack writes it ({first['msg'].lower()}), got {got}; "
            "restore the file, or name another folder"
        ) from error
    return content
