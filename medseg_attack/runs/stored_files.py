"""Forms of the files beside the rows of a run: a field that is absent or of another type is refused by its name."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medseg_attack.errors import InputError
from medseg_attack.storage.forms import MOST, Count, Form, Share
from medseg_attack.storage.json_files import read_json
from medseg_attack.storage.yaml_files import read_yaml

HEADER_FILE, CONFIG_FILE, STUDY_FILE = "run.json", "config.json", "study.yaml"
TRIAL_FILE = "trial.json"  # of `medattack defend`, beside the runs of its native part
DETECTION_ENDING = ".detection.json"  # of `medattack detect`, beside a detector


class FlagRecord(Form):
    """A flag as `run.json` and `checks.json` hold it."""

    code: str
    title: str
    verdict: Literal["invalid", "upper bound on robustness", "note"]
    todo: str
    about: str
    numbers: str = Field(alias="seen")


class Computed(Form):
    """The fields of a header about its computation; older headers lack some of them."""

    device: str = ""
    seconds: float = Field(0, ge=0, le=MOST)
    versions: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, str] = Field(default_factory=dict)


class Header(Computed):
    """The header of a finished run, `run.json`; older ones lack some fields."""

    model: str
    attack: str
    cases: Count
    model_id: str = ""
    run_id: str = ""
    role: Literal["control", "attack", "clean"] = "attack"
    loss: str = ""
    ball: str = ""
    knowledge: Literal["", "native", "adaptive"] = ""
    eps: float | None = Field(None, ge=-MOST, le=MOST)
    eps_unit: str = ""
    unit: str = ""  # of the budget, in older ones, which have no `eps_unit`
    dims: Literal[2, 3] = 2
    batch_size: int = Field(1, ge=1, le=MOST)
    partial: bool = False
    trained_on: Count = 0  # of the patients who are scored, how many the model was trained on
    checks: bool = False
    queries: bool = False
    prompt: str = ""
    data: str = ""
    split: str = ""
    n_parameters: Count = 0
    val_dice: float | None = None
    flags: list[FlagRecord] = Field(default_factory=list)
    fit_without_gradient: str = ""
    fit_without_answer: str = ""
    fit_without_slope: str = ""


class Config(Form):
    """All that determined the rows of a run, `config.json`."""

    attack: str
    weights: str
    data: str
    metrics: list[str]
    seed: int
    budget: str | None = None


class StoredStudy(Form):
    """The fields of a run's `study.yaml` that are read again."""

    data: str
    models: list[str]
    split: Literal["test", "val", "train", "all"] = "test"
    fold: int = Field(0, ge=0)
    limit: float | None = Field(None, gt=0)


class StoredTrial(Form):
    """A trial of a defence, `trial.json`: what the runs of its parts do not say.

    Labels are those of the headers of its runs.
    """

    twin: str
    non_adaptive: dict[str, str]
    passes: dict[str, Count]


class DetectionRow(Form):
    """A row of a detector's table: clean images, noise or an attack; further fields are shares and AUROCs."""

    __pydantic_extra__: dict[str, Share | None] = Field(init=False)

    kind: Literal["clean", "noise", "attack", "adaptive"]
    attack: str
    loss: str = ""
    goal: str = ""
    eps: str
    patients: int = Field(ge=1, le=MOST)
    dice: Share | None
    harmed: float | None = Field(None, ge=0, le=MOST)
    noticed: Share | None = None
    missed: Share | None = None
    risk: float | None = Field(None, ge=0, le=2)  # missed, and a tenth of the false alarms

    @model_validator(mode="after")
    def _require_harm(self) -> "DetectionRow":
        if self.kind in ("attack", "adaptive") and self.harmed is None:
            raise ValueError("an attack without the number 'harmed' of patients")
        return self


class StoredDetection(Form):
    """A detector's table, as `medattack detect --json` prints it, and what it is about."""

    model: str
    data: str
    detector: str
    adaptive: bool
    verdict: str
    calibration_patients: int = Field(ge=1, le=MOST)
    partial: bool = False  # older ones lack it
    two_sided_rate: Share | None = None  # of false alarms, that `alarms_two_sided` belongs to; older ones lack it
    rows: list[DetectionRow] = Field(min_length=1)


class StoredCertificate(Computed):
    """The header of finished certificates, `run.json`; older ones lack some fields."""

    model: str
    data: str
    unit: str = ""
    prompt: str = ""
    partial: bool = False
    flags: list[FlagRecord] = Field(default_factory=list)


def read_header(run: Path) -> dict[str, Any]:
    """The header of a finished run.

    Raises:
        InputError: the run did not finish, or a field of its header is not what it should be.
    """
    if not (run / HEADER_FILE).exists():
        raise InputError(
            f"expected a finished run in {run}, got one without {HEADER_FILE}; run its attack again, it goes on where "
            "it stopped"
        )
    return read_json(run / HEADER_FILE, Header)


def read_config(run: Path) -> dict[str, Any]:
    """All that determined the rows of a run.

    Raises:
        InputError: there is nothing, or a field of it is not what it should be.
    """
    return read_json(run / CONFIG_FILE, Config)


def read_stored_study(results: Path) -> dict[str, Any]:
    """The study in a folder of results.

    Raises:
        InputError: there is none, or a field of it is not what it should be.
    """
    return read_yaml(results / STUDY_FILE, StoredStudy)
