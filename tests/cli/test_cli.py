"""The command line end to end, as a user types it: scans -> data -> model -> attacks -> tables, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from helpers.command import medattack
from helpers.killed import command_killed_at_file, interrupted, killed
from safetensors import safe_open


def stderr_of(result: Any) -> str:
    """What was said on stderr, on one line."""
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a small phantom and a model that was trained for two epochs."""
    home = tmp_path_factory.mktemp("workspace")
    spec = "phantom(patients=6, slices=4, side=32)"
    medattack("prepare", home / "scans", "--format", spec, "--home", home)
    medattack("train", "--home", home, "--model", "unet_small", "--epochs", "2", "--device", "cpu")
    return home


def test_the_short_form_finds_model_and_data_and_prints_the_table(home: Path) -> None:
    result = medattack("attack", "--home", home, "--model", "unet_small", "--loss", "bce", "--eps", "0.01")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for word in ("clean", "noise", "fgsm", "bce", "0.01", "large", "bowel", "stomach", "missed"):
        assert word in result.stdout
    assert "Empty masks: an organ absent from truth and prediction scores 1" in " ".join(result.stdout.split())
    assert "data" in result.stderr
    assert "Next: medattack compare" in stderr_of(result)


def test_json_is_json_and_agrees_with_the_rows(home: Path) -> None:
    words = ["attack", "--home", home, "--model", "unet_small", "--loss", "bce", "--eps", "4/255", "--out", home / "j"]
    content = json.loads(medattack(*words, "--json").stdout)
    noise, fgsm = content["runs"]
    assert (noise["attack"], fgsm["attack"], fgsm["loss"], fgsm["eps"]) == ("noise", "fgsm", "bce", 4 / 255)
    parts = sorted((home / "j").rglob("01_fgsm_bce*/parts/*.parquet"))
    rows = pd.concat([pd.read_parquet(part) for part in parts])
    volumes = rows.groupby(["cls", "volume"])[["n_target", "n_adv", "hit_adv"]].sum()
    total = volumes["n_target"] + volumes["n_adv"]
    dice = (2 * volumes["hit_adv"] / total.where(total > 0, 1)).where(total > 0, 1.0)
    assert fgsm["stomach_adv"] == pytest.approx(dice["stomach"].mean())
    assert fgsm["mean_adv"] == pytest.approx(dice.groupby("cls").mean().mean())
    assert 4 / 255 - rows["level"].max() < rows["linf"].max() <= 4 / 255 + 1e-6  # a whole number of stored values


def test_the_seed_is_what_the_attacks_draw_from(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, "--model", "unet_small", "--attack", "noise", "--eps", "0.1"]
    drawn = []
    for name, seed in (("a", 0), ("b", 7), ("c", 7)):
        medattack(*words, "--no-control", "--seed", seed, "--save-adversarial", "all", "--out", tmp_path / name)
        (file,) = (tmp_path / name).rglob("images/00000.safetensors")
        with safe_open(file, framework="numpy") as stored:
            drawn.append({key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118
    assert drawn[0].keys() == drawn[1].keys() == drawn[2].keys()
    assert all((drawn[0][key] != drawn[1][key]).any() for key in drawn[0])
    assert all((drawn[1][key] == drawn[2][key]).all() for key in drawn[0])


def test_a_second_run_computes_nothing_and_says_the_same(home: Path) -> None:
    words = ["attack", "--home", home, "--model", "unet_small", "--loss", "focal", "--eps", "0.02"]
    first = medattack(*words)
    parts = {file: file.stat().st_mtime_ns for file in (home / "runs").rglob("*.parquet")}
    assert medattack(*words).stdout == first.stdout
    assert {file: file.stat().st_mtime_ns for file in (home / "runs").rglob("*.parquet")} == parts


def test_a_study_file_runs_a_product_and_is_kept_resolved(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "models: unet_small\nattacks: [fgsm, 'pgd(steps=2)']\nlosses: [bce, soft_dice]\neps: [1/255, 4/255]\n"
    )
    out = tmp_path / "out"
    content = json.loads(medattack("attack", "--home", home, "--config", file, "--out", out, "--json").stdout)
    assert len(content["runs"]) == 2 + 2 * 2 * 2
    resolved = yaml.safe_load((out / "study.yaml").read_text())
    assert Path(resolved["data"]) == home / "data" / "phantom"
    again = medattack("attack", "--config", out / "study.yaml", "--out", tmp_path / "copy", "--json")
    assert [r["mean_adv"] for r in json.loads(again.stdout)["runs"]] == [r["mean_adv"] for r in content["runs"]]


def test_stored_images_score_what_they_scored(home: Path, tmp_path: Path) -> None:
    attacked = medattack(
        "attack",
        "--home",
        home,
        "-m",
        "unet_small",
        "--eps",
        "4/255",
        "--no-control",
        "--save-adversarial",
        "all",
        "--out",
        tmp_path / "run",
        "--json",
    )
    words = ["evaluate", "--home", home, "-m", "unet_small", "--images", tmp_path / "run", "--json"]
    cases = tmp_path / "cases.csv"
    scores = json.loads(medattack(*words, "--out", tmp_path / "replayed", "--csv", cases).stdout)["scores"]
    (run,) = json.loads(attacked.stdout)["runs"]
    assert {s["cls"]: s["dice"] for s in scores} == pytest.approx(
        {organ: run[f"{organ}_adv"] for organ in ("large_bowel", "small_bowel", "stomach")}
    )
    table = pd.read_csv(cases)
    assert {"case", "cls", "dice", "iou", "hd95_mm", "nsd"} <= set(table.columns)
    assert len(table) == 3 * run["entries"] / 3 * 4  # volumes of four slices
    (image_file,) = (tmp_path / "run").rglob("images/00000.safetensors")
    with safe_open(image_file, framework="numpy") as stored:
        assert str(stored.get_tensor(next(iter(stored.keys()))).dtype) == "uint16"


def test_evaluate_scores_clean_images(home: Path) -> None:
    result = medattack("evaluate", "--home", home, "--model", "unet_small")
    for word in ("clean images", "dice", "iou", "hd95", "nsd", "mean"):
        assert word in result.stdout


def test_compare_puts_runs_side_by_side_in_every_form(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    medattack("attack", "--home", home, "-m", "unet_small", "--eps", "1/255", "--eps", "8/255", "--out", out)
    table = medattack("compare", out).stdout
    assert max(map(len, table.splitlines())) <= 100
    assert "8/255" in table
    assert "\n| model" in medattack("compare", out, "--markdown").stdout
    assert r"\toprule" in medattack("compare", out, "--latex").stdout
    by_organ = medattack("compare", out, "--by", "organ,attack", "--sort", "drop", "--json")
    assert len(json.loads(by_organ.stdout)["runs"]) == 4
    costs = medattack("compare", out, "--by", "eps,attack", "--costs", "--markdown").stdout.splitlines()
    costs = [line for line in costs if line.startswith("|")]
    assert [cell.strip() for cell in costs[0].split("|")[-4:-1]] == ["forward passes", "backward passes", "s"]
    assert [line.split("|")[-4:-2] for line in costs[2:6]] == [[" 1 ", " 0 "], [" 2 ", " 1 "]] * 2  # noise, fgsm
    files = tmp_path / "table.csv", tmp_path / "curve.png"
    medattack("compare", out, "--csv", files[0], "--plot", files[1])
    assert len(pd.read_csv(files[0])) == 4
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_deltas_are_of_scans_in_mm_and_ml(home: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "runs", tmp_path / "deltas.csv"
    words = ["--metric", "hd95_mm", "--metric", "assd_mm", "--metric", "nsd", "--no-control", "--out", out]
    medattack("attack", "--home", home, "-m", "unet_small", "--eps", "8/255", *words)
    result = medattack("compare", out, "--deltas", "--csv", file)
    assert max(map(len, result.stdout.splitlines())) <= 100
    for word in ("Clinical deltas", "shift", "volume", "halluc", "ASSD"):
        assert word in result.stdout
    table = pd.read_csv(file)
    rows = pd.concat([pd.read_parquet(part) for part in out.rglob("*.parquet")])
    assert len(table) == rows.drop_duplicates(["volume", "cls"]).shape[0] < len(rows)
    voxel_ml = (rows["z_mm"] * rows["y_mm"] * rows["x_mm"] / 1000).iloc[0]
    assert voxel_ml > 0
    assert table["volume_ml_adv"].sum() == pytest.approx(rows["n_adv"].sum() * voxel_ml)
    assert set(table["state_adv"]) <= {"ok", "missed", "hallucinated", "absent"}
    missed = table[table["state_adv"] == "missed"]
    assert (table.loc[table["state_adv"] == "ok", "hd95_mm_adv"] >= 0).all()
    assert (missed["hd95_mm_adv"] > 32).all()  # more than a side of the grid
    assert len(json.loads(medattack("compare", out, "--deltas", "--json").stdout)["deltas"]) == len(table)


def test_a_limit_is_stamped_and_not_compared_unless_allowed(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "part"
    result = medattack("attack", "--home", home, "-m", "unet_small", "--eps", "0.01", "--limit", "2", "--out", out)
    assert "PARTIAL" in result.stdout
    assert "--allow-partial" in stderr_of(medattack("compare", out, code=2))
    medattack("compare", out, "--allow-partial")


def test_a_limit_that_leaves_no_case_out_is_no_limit(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    result = medattack("attack", "--home", home, "-m", "unet_small", "--eps", "0.01", "--limit", "99", "--out", out)
    assert "PARTIAL" not in result.stdout
    assert "MA031" not in result.stdout
    assert "--allow-partial" not in result.stderr
    medattack("compare", out)


def test_a_plan_writes_nothing(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    words = ["attack", "--home", home, "-m", "unet_small", "--attack", "pgd(steps=3)", "--eps", "0.01", "--out", out]
    plan = json.loads(medattack(*words, "--plan", "--json").stdout)
    assert not out.exists()
    n = plan["cases"]
    assert [(run["attack"], run["forwards"], run["backwards"]) for run in plan["runs"]] == [
        ("noise", 3 * n, 0),
        ("pgd(steps=3)", 7 * n, 3 * n),
    ]
    of_runs = sum(run["seconds"] for run in plan["runs"])
    assert plan["seconds"] == pytest.approx(of_runs + plan["check_seconds"])
    assert 100 < plan["memory_mb"] < 100_000  # torch alone takes more than the one, no test more than the other
    assert plan["disk_mb"] > 0
    assert "when they succeed.\n2 runs of" in medattack(*words, "--plan").stdout


def test_shards_print_the_table_when_the_last_is_done(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, "-m", "unet_small", "--eps", "0.01", "--out", tmp_path / "shards"]
    first = medattack(*words, "--shard", "1/2")
    assert first.stdout == ""
    assert "the last one prints the table" in stderr_of(first)
    assert "fgsm" in medattack(*words, "--shard", "0/2").stdout


def test_a_job_array_needs_no_shard_option(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["attack", "--home", home, "-m", "unet_small", "--eps", "0.01", "--out", tmp_path / "array"]
    for name, value in (("COUNT", 2), ("MIN", 1), ("MAX", 2), ("STEP", 1), ("ID", 1)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    first = stderr_of(medattack(*words))
    assert "--shard 0/2, from SLURM_ARRAY_TASK_ID=1; --shard 0/1 runs all parts here" in first
    assert "shard 0/2 is done" in first
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert "fgsm" in medattack(*words).stdout
    assert "from SLURM" not in stderr_of(medattack(*words, "--shard", "1/2"))  # what is typed goes first


def rows_of(folder: Path) -> dict[str, pd.DataFrame]:
    return {str(f.relative_to(folder)): pd.read_parquet(f) for f in sorted(folder.rglob("*.parquet"))}


def test_killed_in_the_middle_it_ends_with_the_same_rows(home: Path, tmp_path: Path) -> None:
    words = [
        "attack",
        "--home",
        str(home),
        "-m",
        "unet_small",
        "--split",
        "all",
        "--attack",
        "pgd(steps=8)",
        "--eps",
        "4/255",
        "--device",
        "cpu",
    ]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    killed(command_killed_at_file, [*words, "--out", str(cut)], 2, ".parquet")
    assert len(list(cut.rglob("*.parquet"))) == 1
    assert not list(cut.rglob("run.json"))
    unfinished = medattack("compare", cut, code=2)
    assert "without run.json" in stderr_of(unfinished)
    for out in (cut, whole):
        medattack(*words, "--out", out)
    resumed, undisturbed = rows_of(cut), rows_of(whole)
    assert list(resumed) == list(undisturbed)
    assert len(resumed) > 2
    for name, rows in resumed.items():
        pd.testing.assert_frame_equal(rows, undisturbed[name], check_exact=True)


def test_interrupted_it_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "cut", tmp_path / "log"
    words = ["attack", "--home", str(home), "-m", "unet_small", "--split", "all", "--attack", "pgd(steps=300)"]
    assert interrupted(log, [*words, "--out", str(out)], lambda: any(out.rglob("config.json"))) == 130
    assert "go on with the same command" in log.read_text()


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("attacks", ["clean", "noise", "fgsm", "bim", "pgd", "mi_fgsm", "fgsm_wang2024"]),
        ("objectives", ["bce", "ce", "soft_dice", "focal", "dice_focal", "bce_dice", "margin"]),
        ("datasets", ["phantom", "uw_madison", "acdc", "decathlon"]),
        ("metrics", ["hd95_mm", "assd_mm", "nsd"]),
        (
            "models",
            ["unet", "unet_resnext101", "unet_efficientnet_b7", "unetplusplus_efficientnet_b7", "unet_small", "smp"],
        ),
    ],
)
def test_ls_lists_what_there_is(what: str, names: list[str]) -> None:
    listed = {row["name"]: row for row in json.loads(medattack("ls", what, "--json").stdout)}
    assert set(names) <= set(listed)
    assert all(row["what"] for row in listed.values())
    if what == "models":
        assert 18e6 < listed["unet"]["parameters"] < 20e6
        assert (
            listed["unetplusplus_efficientnet_b7"]["parameters"] > listed["unet_efficientnet_b7"]["parameters"] > 60e6
        )


def test_doctor_finds_this_machine_in_order(tmp_path: Path) -> None:
    facts = json.loads(medattack("doctor", "--json", "--home", tmp_path).stdout)
    assert facts["decoders"] == {"PNG, 16 bit": True, "NIfTI": True}
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["disk"]["free GB"] > 0


# what is refused: one sentence, exit code 2, nothing left behind

UNET = ["-m", "unet_small"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*UNET, "--attack", "pgdd"], "did you mean pgd"),
        ([*UNET, "--attack", "pgd(step=3)"], "did you mean steps or step_size?"),
        ([*UNET, "--attack", "noise(draw='loud')"], "sign, uniform, gaussian"),
        ([*UNET, "--loss", "bec"], "did you mean bce?"),
        ([*UNET, "--loss", "focal(gama=1)"], "did you mean gamma?"),
        ([*UNET, "--metric", "hd96_mm"], "did you mean hd95_mm?"),
        ([*UNET, "--eps", "-0.1"], "eps >= 0"),
        ([*UNET, "--eps", "4"], "write 4/255"),
        ([*UNET, "--eps", "1.0"], "write 1/255"),
        ([*UNET, "--eps", "small"], "error: expected eps as 0.01, 4/255"),
        ([*UNET, "--eps", "5HU"], "expected intensities in HU"),
        ([*UNET, "--eps", "5mm"], "%window, HU, raw, sigma"),
        ([*UNET, "--eps", "1e-6"], "one stored value or more"),
        ([*UNET, "--save-adversarial", "some"], "worst:20"),
        ([*UNET, "--shard", "2/2"], "0 <= k < N"),
        ([*UNET, "--device", "gpu"], "cuda"),
        ([*UNET, "--split", "tset"], "split"),
        ([*UNET, "--fold", "9", "--split", "val"], "fold"),
        (["-m", "unet"], "medattack train --model unet"),
        ([], "models"),
        ([*UNET, "--data", "nowhere"], "nowhere"),
        ([*UNET, "--config", "nowhere.yaml"], "nowhere.yaml"),
        ([*UNET, "--attack", "fgsm_wang2024"], "fgsm_wang2024(channels=1)"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_attack_refuses(home: Path, tmp_path: Path, words: list[str], message: str) -> None:
    out = tmp_path / "out"
    result = medattack("attack", "--home", home, *words, "--out", out, code=2)
    assert message in stderr_of(result)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not out.exists()


def test_results_of_another_configuration_are_not_mixed(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, *UNET, "--out", tmp_path / "out"]
    medattack(*words, "--eps", "0.01")
    result = medattack(*words, "--eps", "0.02", code=2)
    assert "eps: only there 0.01, only here 0.02" in stderr_of(result)
    medattack(*words, "--eps", "0.01")


def test_results_of_other_weights_are_not_mixed(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(next((home / "models").iterdir()), model)
    words = ["attack", "--home", home, "-m", model, "--eps", "0.01", "--out", tmp_path / "out"]
    medattack(*words)
    folder = next((tmp_path / "out").rglob("config.json"))
    content = json.loads(folder.read_text())
    folder.write_text(json.dumps(content | {"weights": "0" * 64}))
    assert "weights: there 000" in stderr_of(medattack(*words, code=2))


def test_a_folder_of_other_things_is_not_written_to(home: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    result = medattack("attack", "--home", home, *UNET, "--out", tmp_path, code=2)
    assert "a folder of other things" in stderr_of(result)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_checkpoint_of_other_classes_is_refused(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(next((home / "models").iterdir()), model)
    card = json.loads((model / "card.json").read_text())
    card["task"]["classes"] = ["liver", "spleen", "aorta"]
    (model / "card.json").write_text(json.dumps(card))
    result = medattack("attack", "--home", home, "-m", model, "--out", tmp_path / "out", code=2)
    assert "was trained for" in stderr_of(result)
    assert "liver" in stderr_of(result)
    assert not list(tmp_path.rglob("*.parquet"))


def test_damaged_rows_are_named(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, *UNET, "--eps", "0.01", "--out", tmp_path / "out"]
    medattack(*words)
    part = next((tmp_path / "out").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    assert part.name in stderr_of(medattack("compare", tmp_path / "out", code=2))


def test_a_full_disk_is_told_and_what_was_finished_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import pyarrow.parquet

    written = pyarrow.parquet.write_table
    calls = []

    def full(table: Any, where: Any, **options: Any) -> None:
        calls.append(where)
        if len(calls) == 2:
            Path(where).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(table, where, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    words = ["attack", "--home", home, *UNET, "--eps", "0.01", "--out", tmp_path / "out"]
    result = medattack(*words, code=2)
    assert "room on the disk" in stderr_of(result)
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 1
    assert not list((tmp_path / "out").rglob("*.part"))
    monkeypatch.undo()
    medattack(*words)


def test_a_region_is_named_held_stored_and_verified(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, "--model", "unet_small", "--loss", "bce", "--eps", "0.1", "--no-checks"]
    inside = ["--region", "outside:stomach", "--save-adversarial", "all", "--out", tmp_path / "held"]
    table = medattack(*words, *inside, "--json")
    assert {run["attack"] for run in json.loads(table.stdout)["runs"]} == {
        "noise within outside:stomach",
        "fgsm within outside:stomach",
    }
    (run,) = (tmp_path / "held").rglob("01_fgsm*")
    medattack("verify", run)
    result = medattack(*words, "--region", "outside:stomac", "--out", tmp_path / "none", code=2)
    assert "expected an organ of this data set in --region outside:stomac" in stderr_of(result)
    assert "stomach" in stderr_of(result)
    assert not (tmp_path / "none").exists()


def test_moved_scans_are_scored_and_not_stored(home: Path, tmp_path: Path) -> None:
    words = ["attack", "--home", home, "--model", "unet_small", "-a", "affine(steps=1)", "--no-checks"]
    runs = json.loads(medattack(*words, "--out", tmp_path / "runs", "--json").stdout)["runs"]
    assert [run["attack"] for run in runs] == ["noise affine(steps=1)", "affine(steps=1)"]
    rows = pd.concat([pd.read_parquet(part) for part in (tmp_path / "runs").rglob("*.parquet")])
    assert (rows["n_target_adv"] != rows["n_target"]).any()
    assert (rows["size"] <= 1 + 1e-6).all()
    medattack("compare", tmp_path / "runs", "--deltas")
    result = medattack(*words, "--save-adversarial", "all", "--out", tmp_path / "stored", code=2)
    assert "expected attacks that leave anatomy where it is, got affine(steps=1)" in stderr_of(result)
