"""What was scored is what is on the disk: every attack, every storage type, and every tampering caught."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers.command import medattack
from helpers.scans import set_scale, write_uw
from PIL import Image

from medseg_attack import registry
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.exports.verification import _check_batch, _check_budget
from medseg_attack.models.checkpoints import save
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.stored_values import StoredValues
from medseg_attack.runs.folder import RunFolder
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Batch, Case, Fittable, Storage, Task, Window

MOVES = (
    "affine",
    "deformation",
    "deformation_bias",
    "inpaint",
    "insert",
    "latent_edit",
    "remove",
)  # refused: their truth is not written
# scored on patients that they were not fitted on
LEARNS = [
    name
    for name in registry.names("attack")
    if isinstance(registry.build(name, "attack"), Fittable) and name not in MOVES
]
ATTACKS = [
    name
    for name in registry.names("attack")
    if name not in ("replay", "worst_prompt", "clean", "fgsm_wang2024", "transfer", *MOVES, *LEARNS)
]
STORAGES = ["png16", "int16", "float32"]
EVERYWHERE = ["fgsm", "pgd"]  # beside a third of the attacks in each storage type; by hand all are run in each
STUDIES = [
    pytest.param((storage, list(dict.fromkeys(EVERYWHERE + ATTACKS[k::3])), LEARNS[k::3]), id=storage)
    for k, storage in enumerate(STORAGES)
] + [pytest.param((storage, ATTACKS, LEARNS), id=f"{storage}, all", marks=pytest.mark.slow) for storage in STORAGES]


def write_nifti(root: Path, dtype: str) -> Path:
    """Four patients of 3 slices, stored with slope 0.5 and offset -20, or as floats; names in the header."""
    rng = np.random.default_rng(1)
    for patient in range(1, 5):
        for folder, name in (("imagesTr", f"p{patient}_0000.nii.gz"), ("labelsTr", f"p{patient}.nii.gz")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            if folder == "labelsTr":
                file = nibabel.Nifti1Image(rng.integers(0, 3, (14, 12, 3)).astype(np.uint8), np.diag([1.5, 1.5, 8, 1]))
            elif dtype == "float32":
                file = nibabel.Nifti1Image(rng.random((14, 12, 3), np.float32) * 500, np.diag([1.5, 1.5, 8, 1]))
            else:
                file = nibabel.Nifti1Image(
                    rng.integers(-10, 600, (14, 12, 3)).astype(np.int16), np.diag([1.5, 1.5, 8, 1])
                )
                file.header["scl_slope"], file.header["scl_inter"] = 0.5, -20
            file.header["descrip"] = b"Jane Doe, born 1970"
            nibabel.save(file, root / folder / name)
            if dtype == "int16" and folder == "imagesTr":
                set_scale(root / folder / name, 0.5, -20)
    return root


def short(name: str) -> str:
    """An attack with as few queries and searches as it takes."""
    options = {"queries": 45, "searches": 1}
    settings = ", ".join(f"{option}={n}" for option, n in options.items() if registry.find(name).takes(option))
    return f"{name}({settings})" if settings else name


def short_fit(name: str) -> str:
    """An attack that learns, with as few epochs or steps as it takes."""
    option = next((option for option in ("epochs", "steps") if registry.find(name).takes(option)), "")
    return f"{name}({option}=2)" if option else name


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of many attacks on scans of one storage type, its scans stored; and the folder of its source."""
    storage, attacks, learned = request.param
    root = tmp_path_factory.mktemp(storage)
    if storage == "png16":
        source, kind = write_uw(root / "scans"), "uw_madison"
    else:
        source, kind = write_nifti(root / "scans", storage), "decathlon"
    medattack("prepare", source, "--format", kind, "--out", root / "data")
    data = open_prepared(root / "data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build("unet_small(channels=(4, 8))", "model")(data.task)
    save(root / "model", model, {"label": "tiny", "spec": "unet_small(channels=(4, 8))"})
    names = [word for name in attacks for word in ("--attack", short(name))]
    words = [
        "attack",
        "--data",
        root / "data",
        "-m",
        root / "model",
        "--eps",
        "8/255",
        "--save-adversarial",
        "all",
        "--no-checks",
    ]
    medattack(*words, *names, "--steps", "3", "--split", "all", "--out", root / "runs" / "all")
    fits = [word for name in learned for word in ("--attack", short_fit(name))]
    medattack(
        *words,
        *fits,
        "--attack",
        f"transfer(surrogate='{root / 'model'}', attack=fgsm)",
        "--no-control",
        "--out",
        root / "runs" / "test",
    )
    return root / "runs", source


def test_dice_from_disk_is_dice_in_memory_to_the_last_pixel(
    request: pytest.FixtureRequest, study: tuple[Path, Path]
) -> None:
    runs, _ = study
    _, attacks, learned = request.node.callspec.params["study"]
    result = medattack("verify", runs, "--json")
    results = json.loads(result.stdout)
    assert len(results) == len(list(runs.rglob("run.json")))
    configs = [json.loads((Path(one["run"]) / "config.json").read_text())["attack"] for one in results]
    built = {registry.spec(registry.build(short(name), "attack")).partition("(")[0] for name in (*attacks, *learned)}
    assert {config.partition("(")[0] for config in configs} >= built | {"transfer"}
    assert all(one["verified"] for one in results), results


def test_worst_of_two_are_the_two_files_of_lowest_dice(study: tuple[Path, Path], tmp_path: Path) -> None:
    root = study[0].parent
    medattack(
        "attack",
        "--data",
        root / "data",
        "-m",
        root / "model",
        "--eps",
        "8/255",
        "--split",
        "all",
        "--no-control",
        "--no-checks",
        "--save-adversarial",
        "worst:2",
        "--out",
        tmp_path / "runs",
    )
    (run,) = (file.parent for file in (tmp_path / "runs").rglob("run.json"))
    written = {str(f.relative_to(run / "adversarial")) for f in (run / "adversarial").rglob("*") if f.is_file()}
    paths = {path for path in written if path.endswith((".png", ".nii.gz"))}
    assert len(paths) == 2
    rows = RunFolder(run).rows()
    sources: dict[str, str] = {}  # a case's own slice, or the one file of its scan
    for record in open_prepared(root / "data").records.values():
        images = [one.path for one in record.sources if one.path in written or "label" not in one.path]
        slices = [path for path in images if path.endswith(".png")]
        sources |= dict(zip(record.case_ids, slices or images[:1] * len(record.case_ids), strict=True))
    counts = rows.groupby(rows["case"].map(sources))[["n_target", "n_adv", "hit_adv"]].sum()
    dice = (2 * counts["hit_adv"] / (counts["n_target"] + counts["n_adv"])).sort_values()
    assert dice.iloc[1] < dice.iloc[2]
    assert paths == set(dice.index[:2])
    assert all(one["verified"] for one in json.loads(medattack("verify", tmp_path / "runs", "--json").stdout))


def test_every_attack_moves_stored_values_by_whole_levels_inside_its_budget(
    request: pytest.FixtureRequest, study: tuple[Path, Path]
) -> None:
    runs, source = study
    _, attacks, _ = request.node.callspec.params["study"]
    data = open_prepared(runs.parent / "data")
    moved = 0
    of_linf = (file for file in runs.rglob("run.json") if json.loads(file.read_text())["ball"].startswith("linf"))
    for run in (file.parent for file in of_linf):
        for path in (file for file in (run / "adversarial").rglob("*") if file.suffix in (".png", ".gz")):
            before, after = source / path.relative_to(run / "adversarial"), path
            if path.suffix == ".png":
                a, b = (np.asarray(Image.open(file)).astype(int) for file in (before, after))
                width = next(r for r in data.records.values() if r.group in str(path)).windows[0]
                limit = 8 / 255 * (width[1] - width[0])
            else:
                a, b = (np.asarray(nibabel.load(file).dataobj.get_unscaled()) for file in (before, after))
                record = data.records[path.name.removesuffix("_0000.nii.gz")]
                limit = 8 / 255 * (record.windows[0][1] - record.windows[0][0]) / record.slope
                assert nibabel.load(after).get_data_dtype() == nibabel.load(before).get_data_dtype()
                assert np.array_equal(nibabel.load(after).affine, nibabel.load(before).affine)
                assert b"Jane" not in gzip.decompress(after.read_bytes())
            change = np.abs(b.astype(float) - a)
            assert change.max() <= limit * (1 + 1e-6)
            moved += change.max() > limit / 2
    assert moved > len(attacks)


def test_replayed_scans_score_the_same(study: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = study
    run = next(file.parent for file in sorted(runs.rglob("run.json")) if "pgd" in file.parent.name)
    words = ["evaluate", "--data", runs.parent / "data", "-m", runs.parent / "model", "--split", "all"]
    medattack(*words, "--images", run, "--out", tmp_path / "replayed")
    both = [
        pd.concat([pd.read_parquet(file) for file in sorted(folder.rglob("*.parquet"))])
        for folder in (run, tmp_path / "replayed")
    ]
    columns = ["case", "cls", "n_target", "n_clean", "n_adv", "hit_adv"]
    pd.testing.assert_frame_equal(both[0][columns], both[1][columns], check_exact=True)
    assert both[1]["linf"].tolist() == pytest.approx(both[0]["linf"].tolist(), abs=1e-6)


def one_level_more(path: Path) -> None:
    if path.suffix == ".png":
        pixels = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(np.where(pixels > 1000, pixels + 200, pixels).astype(np.uint16)).save(path)
        return
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]))
    values = np.frombuffer(bytes(content[352:]), header.get_data_dtype()).copy()
    values[len(values) // 2] += 100
    path.write_bytes(gzip.compress(bytes(content[:352]) + values.tobytes()))


def resealed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The change, with a sidecar that was brought in line: only the content can give it away."""

    def act(path: Path) -> None:
        from medseg_attack.storage.files import file_hash

        change(path)
        sidecar = path.with_name(path.name + ".json")
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": file_hash(path)}))

    return act


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def move_the_patient(path: Path) -> None:
    if path.suffix == ".png":
        Image.fromarray(np.asarray(Image.open(path)).T.astype(np.uint16)).save(path)
        return
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]))
    header["srow_x"] = header["srow_x"] + np.array([0, 0, 0, 5])
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (flip_a_bit, "sha256"),
        (resealed(one_level_more), "budget"),
        (resealed(move_the_patient), "expected"),
        (Path.unlink, "is missing"),
    ],
    ids=["one bit", "a level too many", "geometry", "file gone"],
)
def test_tampering_is_caught_by_name(
    study: tuple[Path, Path], tmp_path: Path, tamper: Callable[[Path], None], said: str
) -> None:
    runs, _ = study
    study_copy = tmp_path / "runs"
    shutil.copytree(runs, study_copy)
    run = next(file.parent for file in sorted(study_copy.rglob("run.json")) if "fgsm" in file.parent.name)
    copy = min(file for file in (run / "adversarial").rglob("*") if file.suffix in (".png", ".gz"))
    tamper(copy)
    result = medattack("verify", run, code=1)
    assert "FAIL" in result.stdout
    assert said in " ".join(result.stdout.split())
    scan = copy.name.partition("_0000")[0] if copy.suffix == ".gz" else "case"
    assert scan in result.stdout


@pytest.mark.parametrize("keep", [slice(1, None), slice(0)])
def test_a_shortened_list_of_files_is_caught(study: tuple[Path, Path], tmp_path: Path, keep: slice) -> None:
    shutil.copytree(study[0], tmp_path / "runs")
    run = next(file.parent for file in sorted((tmp_path / "runs").rglob("run.json")) if "fgsm" in file.parent.name)
    manifest = run / "adversarial" / "manifest.json"
    content = json.loads(manifest.read_text())
    gone = content["files"][0]["path"]
    manifest.write_text(json.dumps(content | {"files": content["files"][keep]}))
    said = " ".join(medattack("verify", run, code=1).stdout.split())
    assert f"{gone} is not in manifest.json" in said


def test_rows_that_were_changed_are_caught(study: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = study
    shutil.copytree(runs, tmp_path / "runs")
    run = next(file.parent for file in sorted((tmp_path / "runs").rglob("run.json")) if "fgsm" in file.parent.name)
    part = next(run.rglob("*.parquet"))
    table = pyarrow.parquet.read_table(part)
    rows = table.to_pandas()
    rows.loc[3, "n_adv"] += 1
    changed = pyarrow.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(table.schema.metadata)
    pyarrow.parquet.write_table(changed, part)
    assert "expected the rows that were written" in medattack("verify", run, code=2).stderr
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"digest"}  # as older runs have it
    pyarrow.parquet.write_table(changed.replace_schema_metadata(metadata), part)
    result = medattack("verify", run, code=1)
    assert rows.loc[3, "case"] in result.stdout
    assert "from disk" in result.stdout


def test_a_run_without_stored_scans_cannot_be_verified(study: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = study
    medattack(
        "attack",
        "--data",
        runs.parent / "data",
        "-m",
        runs.parent / "model",
        "--no-checks",
        "--eps",
        "8/255",
        "--out",
        tmp_path / "plain",
    )
    assert "--save-adversarial all" in medattack("verify", tmp_path / "plain", code=2).stderr.replace("\n", " ")


def test_a_file_of_a_scan_that_the_data_lack_is_caught(study: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(study[0], tmp_path / "runs")
    run = next(file.parent for file in sorted((tmp_path / "runs").rglob("run.json")) if "fgsm" in file.parent.name)
    manifest = run / "adversarial" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][0]["scan"] += "x"
    manifest.write_text(json.dumps(content))
    result = medattack("verify", run, code=1)
    assert f"{content['files'][0]['path']} is no file of the run's scans" in " ".join(result.stdout.split())


def two_voxels(stored: tuple[int, int]) -> Case:
    """A scan of two voxels in a window from 0 to 100, and of one organ."""
    values = torch.tensor(stored, dtype=torch.int16).view(1, 1, 2)
    return Case(
        "c",
        "c",
        "p",
        (values.float() / 100).clamp(0, 1),
        torch.ones(1, 1, 2, dtype=torch.bool),
        (1.0, 1.0),
        Window(0.0, 100.0),
        storage=Storage(values),
    )


@pytest.mark.parametrize(("after", "wrong"), [((52, 300), False), ((50, 301), True), ((52, 299), True)])
def test_a_voxel_beyond_the_window_may_not_change(after: tuple[int, int], wrong: bool) -> None:
    """The image shows 300 and 301 alike, so that no budget is exceeded and no prediction differs."""
    case, changed = two_voxels((50, 300)), two_voxels(after)
    model = SegModel(torch.nn.Identity(), Task("t", ("organ",))).eval()
    written = StoredValues.of([changed], "cpu")
    assert written is not None
    assert case.storage is not None
    values = {"c": case.storage.stored.numpy()}
    rows = pd.DataFrame([{"case": "c", "cls": "organ", "n_adv": 2, "hit_adv": 2, "budget": 0.03}])
    pred = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    indexed = rows.set_index(["case", "cls"])
    mismatches = list(_check_batch(Batch.of([case]), written, pred, values, model, Linf(0.03), indexed))
    assert [one.problem for one in mismatches] == [
        "a voxel outside of the intensity window, or of padding, was changed"
    ] * wrong


@pytest.mark.parametrize(("budget", "wrong"), [(0.02, False), (0.01, True), (float("nan"), False)])
def test_a_case_is_held_to_its_own_budget(budget: float, wrong: bool) -> None:
    """A budget with a unit is another fraction of the window for each case; the run's ball has that of none."""
    before, after = (torch.full((1, 1, 1, 2), value, dtype=torch.float64) for value in (0.5, 0.52))
    case = two_voxels((50, 50))
    mismatches = list(_check_budget(Task("t", ("organ",)), case, [(after, before)], Linf(0.2), budget))
    assert len(mismatches) == wrong
    assert all("more than its budget of 0.01" in one.problem for one in mismatches)
