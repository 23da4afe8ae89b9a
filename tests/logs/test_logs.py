"""Trackers keep what commands tell them: every curve and number is read back from the store on the disk."""

import importlib.util
import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.command import medattack
from helpers.runs import dice_of, write_run

from medseg_attack.errors import InputError
from medseg_attack.logs.base import TRACKERS, keys, open_log
from medseg_attack.report.sheet import Sheet

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the trackers' own libraries
    pytest.mark.usefixtures("no_server"),
]
HOSTILE = ("../../evil", "..", "a|b", "[red]", "\\input{x}", "<script>", "a(b", "a)b", "", "ﬂ", "x" * 300)
Curves = Mapping[str, list[tuple[int, float]]]


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that what a log sets is undone
        monkeypatch.delenv(name)


def of_tensorboard(logs: Path) -> tuple[Curves, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in (logs / "tensorboard").rglob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    curves = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = [events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]]
    return curves, "\n".join(texts)


def of_mlflow(logs: Path) -> tuple[Curves, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{logs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medattack")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert not [tag for tag in run.data.tags if tag.startswith(("mlflow.user", "mlflow.source"))]
    curves = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    texts = [file.read_text(encoding="utf-8") for file in (logs / "mlflow").rglob("*.md")]
    return curves, "\n".join([*texts, *(f"| {name} | {text} |" for name, text in run.data.params.items())])


def records_of(content: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB: blocks of 32 KiB, pieces of records with checksum, length and kind before them."""
    at, record = 7, b""  # after the name and the version of the format
    while at + 7 <= len(content):
        room = 2**15 - at % 2**15
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def of_wandb(logs: Path) -> tuple[Curves, str]:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process writes the last records when it ends
    (file,) = (logs / "wandb").rglob("*.wandb")
    curves: dict[str, list[tuple[int, float]]] = {}
    text = ""
    for data in records_of(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        text += "".join(f"| {each.key} | {json.loads(each.value_json)} |\n" for each in record.run.config.update)
        items = {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in record.history.item}
        for name, value in items.items():
            if isinstance(value, float | int) and not name.startswith(("_", "table/")):
                curves.setdefault(name, []).append((record.history.step.num, value))
    tables = [json.loads(file.read_text(encoding="utf-8")) for file in (logs / "wandb").rglob("*.table.json")]
    return curves, text + "\n".join("| " + " | ".join(row) + " |" for table in tables for row in table["data"])


READ: dict[str, Callable[[Path], tuple[Curves, str]]] = {
    "tensorboard": of_tensorboard,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


@pytest.fixture(params=sorted(READ))
def tracker(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param, reason=f"needs the extra {request.param}")
    return request.param


def test_every_tracker_is_read_back() -> None:
    assert set(READ) == set(TRACKERS)


def test_a_training_has_its_curves(tracker: str, tmp_path: Path, data: Path) -> None:
    words = ("--data", data, "--model", "unet_small", "--epochs", "2", "--out", tmp_path / "model", "--home", tmp_path)
    result = medattack("train", *words, "--log", tracker)
    curves, text = READ[tracker](tmp_path / "logs")
    with (tmp_path / "model" / "history.csv").open(encoding="utf-8") as file:
        history = pd.read_csv(file)
    for curve, column in (("loss", "loss"), ("lr", "lr"), ("dice/mean", "mean_dice"), ("dice/stomach", "dice_stomach")):
        assert curves[curve] == [(n + 1, pytest.approx(value)) for n, value in enumerate(history[column])]
    assert "| epochs | 2 |" in text
    assert "logged: " in result.stderr
    assert str(tmp_path) not in text


def test_a_comparison_has_its_table_and_numbers(tracker: str, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", dice_of(0, 8), model="un[red]et|a")
    write_run(tmp_path / "runs", dice_of(1, 8), model="un[red]et|a", eps=0.02)
    content = json.loads(medattack("compare", tmp_path / "runs", "--json").stdout)
    medattack("compare", tmp_path / "runs", "--home", tmp_path, "--log", tracker)
    curves, text = READ[tracker](tmp_path / "logs")
    by_name = {name.replace("(", "_"): points[-1][1] for name, points in curves.items()}
    shown = [value for name, value in by_name.items() if name.endswith("/mean_adv")]
    assert sorted(shown) == pytest.approx(sorted(run["mean_adv"] for run in content["runs"]), rel=1e-6)
    assert len(curves) == 2 * 5
    assert f"{content['runs'][0]['mean_adv']:.3f}" in text.replace("\\", "")  # Markdown may escape the point


def test_an_attack_has_its_table_and_numbers(tracker: str, tmp_path: Path, data: Path, model: Path) -> None:
    words = ("--data", data, "--model", model, "--attack", "fgsm", "--loss", "bce", "--eps", "0.01", "--no-checks")
    result = medattack("attack", *words, "--out", tmp_path / "runs", "--home", tmp_path, "--log", tracker, "--json")
    content = json.loads(result.stdout)
    curves, text = READ[tracker](tmp_path / "logs")
    shown = [points[-1][1] for name, points in curves.items() if name.endswith("/mean_adv")]
    assert sorted(shown) == pytest.approx(sorted(run["mean_adv"] for run in content["runs"]), rel=1e-6)
    assert len(shown) == 2  # the attack, and noise of its size
    assert f"{content['runs'][0]['mean_adv']:.3f}" in text.replace("\\", "")
    assert "| attacks | [" in text.replace("\\", "")
    assert "logged: " in result.stderr
    assert str(tmp_path) not in text
    assert str(model.parent) not in text


def test_a_plan_is_logged_nowhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = medattack("attack", "--model", "unet_small", "--plan", "--log", "tensorboard", "--home", home, code=2)
    assert "expected --log without --plan" in " ".join(result.stderr.split())
    assert not home.exists()


def test_names_are_text(tracker: str, tmp_path: Path) -> None:
    values = {f"dice/{name}": float(n) for n, name in enumerate(HOSTILE)}
    sheet = Sheet("a title", ["organ", "Dice"], [[name, "0.5"] for name in HOSTILE])
    with open_log(tracker, tmp_path, "a run", {"model": "unet", "[red]": "<script>"}) as log:
        log.points(values, 1)
        log.table(sheet, pd.DataFrame({"organ": HOSTILE}))
    curves, _ = READ[tracker](tmp_path / "logs")
    assert sorted(value for ((_, value),) in curves.values()) == [float(n) for n in range(len(HOSTILE))]
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_keys_differ_and_stay() -> None:
    names = [f"dice/{name}" for name in HOSTILE]
    assert len(set(keys(names).values())) == len(names)
    assert keys(names) == keys(names)
    assert all(".." not in key and "//" not in key for key in keys(names).values())


def test_a_server_that_is_away_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_run(tmp_path / "runs", dice_of(0, 8))
    result = medattack("compare", tmp_path / "runs", "--log", "mlflow", code=2)
    assert "start its server, or correct MLFLOW_TRACKING_URI" in " ".join(result.stderr.split())


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ("--data", data, "--model", "unet_small", "--epochs", "1", "--out", tmp_path / "model", "--home", tmp_path)
    result = medattack("train", *words, "--log", "wandb", code=2)
    assert "pip install 'medseg-attack[wandb]'" in " ".join(result.stderr.split())
    assert not (tmp_path / "model").exists()


@pytest.fixture(autouse=True)
def tables_of_mlflow(tmp_path: Path, database: Path) -> None:
    """A database that is made already: making one takes seconds."""
    if database.exists():
        (tmp_path / "logs").mkdir()
        shutil.copy(database, tmp_path / "logs")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    if importlib.util.find_spec("mlflow"):
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


def test_an_error_ends_the_run_as_failed(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    with pytest.raises(InputError), open_log("mlflow", tmp_path, "a run", {}):
        raise InputError("no")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("medattack").experiment_id])
    assert run.info.status == "FAILED"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("logs")
    phantom = "phantom(patients=6, slices=3, side=32)"
    medattack("prepare", root / "scans", "--format", phantom, "--test", "0.5", "--out", root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    medattack("train", "--data", data, "--model", "unet_small(channels=(4, 8))", "--epochs", "1", "--out", folder)
    return folder
