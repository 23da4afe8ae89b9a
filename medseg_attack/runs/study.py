"""A study as it is written: in YAML, on the command line or both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from medseg_attack.errors import InputError, nearest
from medseg_attack.storage.yaml_files import read_yaml
from medseg_attack.threat.budgets import parse_budget


class Study(BaseModel):
    """The fields of a study file; every one is an option of `medattack attack` of the same meaning.

    Attributes:
        unit: what has one score; also what `strongest` lowers it of, unless its spec says.
        file: the study file; None: there is none.
        file_fields: the fields that are as that file says, sorted.
        file_specs: the texts in that file that something is built from.
    """

    model_config = ConfigDict(extra="forbid")

    _file: Path | None = PrivateAttr(None)
    _file_fields: tuple[str, ...] = PrivateAttr(())
    _file_specs: tuple[str, ...] = PrivateAttr(())

    data: str | None = None
    models: list[str] = []
    attacks: list[str] = Field(default=["fgsm"], min_length=1)
    losses: list[str] = []
    eps: list[str] = []
    norm: Literal["linf", "l2"] | None = None
    steps: int | None = Field(default=None, ge=1)
    region: str | None = None
    split: Literal["test", "val", "train", "all"] = "test"
    fold: int = Field(default=0, ge=0)
    limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    metrics: list[str] = []
    control: bool = True
    seed: int = Field(default=0, ge=0, le=4294967295)  # as --seed
    native: bool = False
    unit: Literal["slice", "volume", "patient"] = "volume"

    @property
    def file(self) -> Path | None:
        return self._file

    @property
    def file_fields(self) -> tuple[str, ...]:
        return self._file_fields

    @property
    def file_specs(self) -> tuple[str, ...]:
        return self._file_specs

    @field_validator("models", "attacks", "losses", "eps", "metrics", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        return [item for place, item in enumerate(items) if item not in items[:place]]

    @field_validator("steps", "fold", "limit", "seed", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool):  # it would be taken for 0 or 1
            raise InputError(f"expected a number, got {str(value).lower()}; write one")
        return value

    @field_validator("limit")
    @classmethod
    def _whole_or_share(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and not value.is_integer():
            raise InputError(
                f"expected --limit as a whole number of cases or a share below 1, got {value:g}; "
                f"write {int(value)} or {int(value) + 1}"
            )
        return value

    @field_validator("eps", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        return [parse_budget(str(item)).text for item in (value if isinstance(value, list) else [value])]


def read_study(file: Path | None, flags: dict[str, Any]) -> Study:
    """The study in `file` with `flags` over it; a flag that is None or empty says nothing.

    Raises:
        InputError: not YAML, an unknown or ill-typed field; the sentence names it.
    """
    content: Any = {}
    if file is not None:
        content = read_yaml(file, may_be_pipe=True)
    set_flags = {key: value for key, value in flags.items() if value is not None and value != []}
    try:
        study = Study.model_validate(content | set_flags)
    except ValidationError as error:
        raise InputError(_sentence(error, file, set_flags)) from error
    if not study.models:
        raise InputError(f"expected models, got none{f' in {file}' if file else ''}; give --model NAME")
    if file is not None:
        built = ("models", "attacks", "losses", "metrics")
        fields = content.keys() - set_flags.keys()
        specs = study.model_dump(include={*built} & fields)
        study._file, study._file_fields = file, tuple(sorted(fields))
        study._file_specs = tuple(text for texts in specs.values() for text in texts)
    return study


@contextmanager
def naming_file(study: Study) -> Iterator[None]:
    """A scope that adds the name of the study's file to each refusal that does not name it."""
    try:
        yield
    except InputError as error:
        if not study.file_fields or str(study.file) in str(error):
            raise
        error.args = (*error.args, f"  {study.file} sets {', '.join(study.file_fields)}")
        raise


def _sentence(error: ValidationError, file: Path | None, flags: dict[str, Any]) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r} in {file}; {nearest(where, Study.model_fields)}"
    place = f"{where} in {file}" if file and first["loc"][0] not in flags else ""
    if first["type"] == "value_error":
        return f"{place}{place and ': '}{first['ctx']['error']}"
    return f"{place or where}: {first['msg'].lower()}, got {first['input']!r:.60}; write another value"
