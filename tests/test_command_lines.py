"""Every command line of README.md and docs is run, in the order of its section, on scans and networks that are small.

What a reader has before a section is written by `NEEDS`. A line that is not run stands in `NOT_RUN`, with the reason.
"""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import medattack
from helpers.dicoms import box, values, write_seg, write_series
from helpers.documents import ROOT, lines_of_shell, sections
from helpers.hearts import write_heart
from helpers.nnunet_folder import write_folder
from helpers.promptable import NETWORKS as PROMPTABLE
from helpers.scans import write_channels, write_decathlon, write_pair
from PIL import Image
from typer.testing import CliRunner

from medseg_attack.cli import app

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
SECTIONS = [(page, heading) for page in PAGES for heading, text in sections(page).items() if lines_of_shell(text)]
PHANTOM = "phantom(patients=12, slices=2, side=32)"
TINY = "unet_small(channels=(4, 8))"

# a word that takes minutes, and the one that is run in its place
SMALLER = {
    "phantom": PHANTOM,
    "strongest": "strongest(gradients=3)",
    "pgd": "pgd(steps=2)",
    "pgd(steps=40)": "pgd(steps=2)",
    "pgd(steps=40)=PGD-40": "pgd(steps=2)=PGD-40",
    "square": "square(queries=4)",
    "corruption('mri')": "corruption('mri', 'motion')",
}
TRAINED = {"unet": "unet_small"}  # a network that is trained, likewise
# a part of a word, likewise
SMALLER_PARTS = {"(64, 64, 64)": "(8, 32, 32)", "(96, 96, 96)": "(8, 32, 32)", "draws=1000": "draws=100"}
SMALLER_PARTS |= {"(1024, 1024)": "(32, 32)", "voted('unet_small')": "voted('unet_small', draws=2)"}
# options behind all others of a command, which take the place of those before them
MORE = {
    "train": ["--epochs", "1"],
    "extract": ["--queries", "4", "--steps", "2"],
    "certify": ["--limit", "2", "--check", "0"],
    "defend": ["--steps", "2", "--queries", "4", "--limit", "2"],
    "watch": ["--once"],
    "readers": ["--trials", "4"],
    "screen": ["--false-alarms", "0.5"],
    "rm": ["--yes"],
}
# lines by how they begin, and why they are not run here
# lines by a part of them, and why they are not run here
NOT_RUN = {
    "make install": "installs from a network",
    "make demo": "takes minutes; `make` is a shortcut of `medattack demo`",
    "make mutate": "takes hours",
    "pip install": "installs from a network",
    "source ": "is of the shell",
    "--suspect suspect": "needs runs of 20 other models; tests/stats/test_backdoors.py computes the test",
    "--ray num_gpus": "needs GPUs; tests/evaluation/test_launchers.py starts tasks of Ray",
}

# sections about flags, or about results that are worth something because they were checked
CHECKED = {
    ("README.md", "medattack"),
    ("docs/concepts.md", "Flags"),
    ("docs/gate.md", "A gate for a model that is retrained"),
    ("docs/leaderboard.md", "A leaderboard"),
}

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    # each class is what is near to a brightness of its own

    def __init__(self, n_classes):
        super().__init__()
        self.a, self.levels = nn.Parameter(torch.tensor(20.0)), [0.1 + 0.35 * n for n in range(n_classes)]

    def forward(self, x):
        return torch.cat([-self.a * (x - level) ** 2 for level in self.levels], 1)


def build(task):
    return Net(len(task.classes))
"""


def trained(root: Path, data: Path, *names: str) -> None:
    """Small models of these names in the workspace at `root`, all of different weights."""
    for seed, name in enumerate(names):
        folder = root / "medattack_runs" / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        medattack("train", "--data", data, "--model", TINY, "--epochs", "1", "--seed", seed, "--out", folder)
        named(folder, name)


def named(folder: Path, name: str) -> None:
    """Gives a checkpoint the name that `--model` finds it by."""
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"label": name}))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the pages has it: scans, data, models by name and by path, and a study of two of them."""
    root = tmp_path_factory.mktemp("workspace")
    medattack("prepare", root / "scans", "--format", PHANTOM, "--test", "0.5", "--home", root / "medattack_runs")
    (prepared,) = (root / "medattack_runs" / "data").iterdir()
    shutil.copytree(prepared, root / "data")
    models = root / "medattack_runs" / "models"
    medattack("train", "--data", prepared, "--model", "unet_small", "--epochs", "1", "--out", models / "plain")
    named(models / "plain", "plain")
    trained(root, prepared, "unet", "unet_small")
    for name in ("models/a", "models/b", "model"):
        shutil.copytree(models / "unet_small", root / name)
    write_study(root, prepared)
    shutil.copytree(next((root / "RUNS").glob("*/*pgd*")), root / "RUN")
    return root


def copy_model(root: Path) -> None:
    """A model by its path, beside the one that it is compared with."""
    shutil.copytree(root / "model", root / "medattack_runs" / "models" / "trades")


def write_study(root: Path, data: Path, *words: str) -> None:
    """Runs of two models under two attacks, whose images were kept, in the folders that pages call RUN and RUNS."""
    models = [root / "medattack_runs" / "models" / name for name in ("unet", "unet_small")]
    attacks = ("--attack", "fgsm", "--attack", "pgd(steps=2)", "--loss", "bce", "--eps", "0.01", "--eps", "0.02")
    more = ("--metric", "hd95_mm", "--save-adversarial", "all", "--no-checks", *words)
    medattack("attack", "-m", models[0], "-m", models[1], "--data", data, *attacks, *more, "--out", root / "RUNS")


def write_pictures(root: Path) -> None:
    """SCANS of grey pictures, whose masks hold the values 0 to 2."""
    for number in range(6):
        mask = np.zeros((16, 16), np.uint8)
        mask[2:7, 2:9], mask[9:14, 4:12] = 1, 2
        pixels = (90 * mask + np.random.default_rng(number).integers(0, 40, mask.shape)).astype(np.uint8)
        for name, array in (("images", pixels), ("masks", mask)):
            (root / "SCANS" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / "SCANS" / name / f"p{number}.png")


def write_network(root: Path) -> None:
    """A network of one value for each class in net.py, its weights in net.pth, and one for three organs in net.onnx."""
    (root / "net.py").write_text(NETWORK)
    torch.save({"a": torch.tensor(20.0)}, root / "net.pth")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shapes = [helper.make_tensor_value_info(name, kind, ["b", n, "y", "x"]) for name, n in (("x", 1), ("y", 3))]
    graph = helper.make_graph([helper.make_node("Concat", ["x"] * 3, ["y"], axis=1)], "g", shapes[:1], shapes[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), root / "net.onnx")


def write_promptable_network(root: Path) -> None:
    """A network that takes boxes in sam.py, for images of any number of channels."""
    (root / "sam.py").write_text(f"{PROMPTABLE}\n\nbuild = Grey\n")


def write_hospital(root: Path) -> None:
    """HOSPITAL of CT with a SEG of a liver and of a kidney, and a model named unet of these classes."""
    for n in range(1, 7):
        folder = root / "HOSPITAL" / f"pat{n}"
        images = write_series(folder / "CT", values(3, seed=n), patient=f"P{n}")
        masks = np.concatenate([box(3, 3, 7, 2, 6), box(3, 8, 11, 4, 9)], axis=-1)
        write_seg(folder / "labels" / "seg.dcm", images, masks, ["Liver", "Kidney left"])
    labels = "liver=Liver,kidney=Kidney*"
    medattack("prepare", root / "HOSPITAL", "--format", "dicom", "--labels", labels, "--out", root / "dicom")
    trained(root, root / "dicom", "unet")


def prepare_hospital(root: Path) -> None:
    """Data in HU, the newest of the workspace."""
    write_hospital(root)
    shutil.move(root / "dicom", root / "medattack_runs" / "data" / "dicom")


def write_nifti(root: Path) -> None:
    write_decathlon(root / "SCANS")


def write_nnunet(root: Path) -> None:
    """DATASET of nnU-Net with its folds, and RESULTS of a network that it might have trained."""
    write_decathlon(root / "DATASET")
    for file in (root / "DATASET" / "labelsTr").iterdir():
        write_pair(root / "DATASET" / "imagesTr" / file.name, file, mask=np.arange(400).reshape(8, 10, 5) % 3)
    labels = {"background": 0, "liver": 1, "spleen": 2}
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "DATASET" / "dataset.json").write_text(json.dumps(described))
    cases = [f"liver_{n}" for n in range(4)]
    folds = [{"train": [case for case in cases if case != other], "val": [other]} for other in cases]
    (root / "DATASET" / "splits_final.json").write_text(json.dumps(folds))
    place = root / "RESULTS" / "DATASET" / "TRAINER__PLANS__3d_fullres"
    place.parent.mkdir(parents=True)
    shutil.move(write_folder(root / "nnunet"), place)


def prepare_nnunet(root: Path) -> None:
    write_nnunet(root)
    prepare(root, root / "DATASET", "--format", "decathlon", "--window", "range")


def prepare(root: Path, source: Path, *words: object) -> Path:
    """The newest data of the workspace."""
    home = root / "medattack_runs"
    before = set((home / "data").iterdir())
    medattack("prepare", source, *words, "--home", home)
    (folder,) = set((home / "data").iterdir()) - before
    return folder


def prepare_channels(root: Path) -> None:
    """Data of two channels, and a model named unet."""
    data = prepare(root, write_channels(root / "brains", together=True), "--format", "decathlon")
    trained(root, data, "unet")


def prepare_hearts(root: Path) -> None:
    """Data of two phases with the organ lv, models of them, and RUNS."""
    data = prepare(root, write_heart(root / "hearts", 6), "--format", "acdc", "--test", "0.5")
    trained(root, data, "unet", "unet_small")
    shutil.rmtree(root / "RUNS")
    write_study(root, data)


def write_study_file(root: Path) -> None:
    """The study that `medattack new` writes, of fewer steps."""
    file = root / "study.yaml"
    medattack("new", "study", file)
    file.write_text(file.read_text().replace("pgd(steps=40), strongest", "pgd(steps=2)"))


def run_study(root: Path) -> None:
    """STUDY, finished."""
    shutil.copytree(root / "RUNS", root / "STUDY")


def save_baseline(root: Path) -> None:
    """Runs of yesterday, and the baseline `main`."""
    old = ("--data", root / "data", "--model", root / "medattack_runs" / "models" / "unet")
    words = ("--attack", "pgd(steps=2)", "--eps", "4/255", "--no-checks")
    medattack("attack", *old, *words, "--out", root / "runs" / "old")
    home = ("--home", root / "medattack_runs")
    medattack("compare", root / "runs" / "old", "--reference", root / "runs" / "old", "--save-as", "main", *home)


def copy_study_file(root: Path) -> None:
    """The study that RUN is of, above it."""
    shutil.copy(root / "RUNS" / "study.yaml", root)


def write_reader_study(root: Path) -> None:
    """STUDY with readers, and the answers of two of them."""
    run = next((root / "RUNS").glob("*/*pgd*"))
    medattack("readers", run, "--out", root / "STUDY", "--trials", 4, "--home", root / "medattack_runs")
    key = json.loads((root / "STUDY" / "key.json").read_text())
    for reader in "ab":
        rows = [f"{key['study']},{reader},{trial['trial']},{trial['altered']},1.00" for trial in key["trials"]]
        (root / f"answers_{reader}.csv").write_text("\n".join(["study,reader,trial,answer,seconds", *rows]) + "\n")


def run_certificates(root: Path) -> None:
    model = root / "medattack_runs" / "models" / "unet"
    words = ("--certificate", "expected_dice(sigma=0.1, draws=100)", "--radius", 0.05, "--limit", 2, "--check", 0)
    medattack("certify", "-m", model, "--data", root / "data", *words, "--out", root / "certificates")


def save_detector(root: Path) -> None:
    """A calibrated detector under the name that the page gives it, and new scans."""
    runs = next((root / "RUNS").glob("unet_small*"))
    words = ("--detector", "entropy", "--non-adaptive", "--home", root / "medattack_runs")
    medattack("detect", runs, *words, "--out", root / "detectors")
    (file,) = (root / "detectors").glob("*.safetensors")
    file.rename(root / "detectors" / "entropy.safetensors")
    shutil.copytree(root / "data", root / "incoming")


def prepare_for_removal(root: Path) -> None:
    shutil.copytree(root / "data", root / "medattack_runs" / "data" / "uw-1a2b3c4d")


def write_proxy(root: Path) -> None:
    shutil.copytree(root / "data", root / "PROXY")


def prepare_many(root: Path) -> None:
    """Data of so many training patients that a tenth of them is one."""
    shutil.rmtree(root / "data")
    format_words = ("--format", "phantom(patients=12, slices=1, side=32)")
    medattack("prepare", root / "many", *format_words, "--test", "0.25", "--out", root / "data")


def train_beside(root: Path, *names: str) -> None:
    """Small models of these names in folders at `root`, all of different weights."""
    for seed, name in enumerate(names):
        medattack(
            "train", "--data", root / "data", "--model", TINY, "--epochs", "1", "--seed", seed, "--out", root / name
        )


def train_suspects(root: Path) -> None:
    train_beside(root, "suspect", "other-1", "other-2")


def prepare_backdoor(root: Path) -> None:
    """Poisoned data, and two models of clean ones."""
    prepare_many(root)
    trigger = "stamp(goal=erase('stomach'))"
    medattack("poison", root / "data", trigger, "--rho", "0.1", "--out", root / "poisoned")
    medattack("train", "--data", root / "data", "--model", "unet_small", "--epochs", 1, "--out", root / "clean-model")
    train_beside(root, "bad-repaired")


def write_networks_study(root: Path) -> None:
    """study.yaml that names code."""
    write_network(root)
    (root / "study.yaml").write_text("models: [\"own('net.py:build')\"]\nattacks: [fgsm]\n")


def begin(root: Path) -> None:
    """Nothing is there yet."""
    for name in ("scans", "data", "model", "medattack_runs"):
        shutil.rmtree(root / name)


def copy_runs(root: Path) -> None:
    save_baseline(root)
    shutil.copytree(root / "runs" / "old", root / "runs" / "new")


Need = Callable[[Path], object]
NEEDS: dict[tuple[str, str], tuple[Need, ...]] = {
    ("README.md", "medattack"): (begin,),
    ("docs/concepts.md", "Concepts"): (begin,),
    ("docs/python.md", "The numbers of the command line"): (begin,),
    ("docs/attacks.md", "Modalities"): (prepare_channels,),
    ("docs/attacks.md", "Measurements"): (prepare_hearts,),
    ("docs/defences.md", "What a defence is worth"): (copy_model,),
    ("docs/detectors.md", "New scans"): (save_detector,),
    ("docs/extraction.md", "Stolen models"): (write_proxy, write_network),
    ("docs/gate.md", "A gate for a model that is retrained"): (save_baseline,),
    ("docs/gate.md", "Baselines by name"): (copy_runs,),
    ("docs/howto.md", "Attack your own network"): (write_pictures, write_network),
    ("docs/howto.md", "Read DICOM from a hospital"): (write_hospital,),
    ("docs/howto.md", "Attack volumes in 3-D"): (write_nifti,),
    ("docs/howto.md", "Attack an nnU-Net"): (write_nnunet,),
    ("docs/howto.md", "SLURM"): (write_study_file,),
    ("docs/howto.md", "Several GPUs of one machine"): (write_study_file,),
    ("docs/howto.md", "Gate a retrained model in CI"): (save_baseline,),
    ("docs/models.md", "Your own network, and volumes"): (write_network,),
    ("docs/models.md", "Promptable networks"): (write_promptable_network,),
    ("docs/models.md", "nnU-Net"): (prepare_nnunet,),
    ("docs/poisoning.md", "Poisoned training data"): (prepare_many,),
    ("docs/poisoning.md", "A watermark"): (train_suspects,),
    ("docs/poisoning.md", "A backdoor that knows fine-pruning"): (prepare_backdoor,),
    ("docs/readers.md", "A study with readers"): (copy_study_file,),
    ("docs/readers.md", "Scores"): (write_reader_study,),
    ("docs/report.md", "The robustness card"): (run_certificates,),
    ("docs/results.md", "Perturbed scans"): (prepare_hospital,),
    ("docs/scans.md", "DICOM"): (write_hospital,),
    ("docs/security.md", "The rule"): (write_networks_study,),
    ("docs/studies.md", "Shards"): (write_study_file,),
    ("docs/studies.md", "Watch a study"): (run_study,),
    ("docs/studies.md", "Side by side"): (prepare_hearts,),
    ("docs/studies.md", "The workspace"): (prepare_for_removal,),
}


def smaller(word: str) -> str:
    """A word of a command line, or the one that takes less time in its place."""
    for part, other in SMALLER_PARTS.items():
        word = word.replace(part, other)
    return SMALLER.get(word, word)


def in_place(line: str, number: int, run: str, is_checked: bool) -> list[str]:
    """The words after `medattack` of a line, as they are run; `run` is where runs without a folder go."""
    words = shlex.split(line.partition(" > ")[0], comments=True)
    start = words.index("medseg_attack" if "medseg_attack" in words else "medattack")
    command, *words = map(smaller, words[start + 1 :])
    words += MORE.get(command, ())
    if command == "train":
        words = [TRAINED.get(word, word) for word in words]
    if command == "attack" and not is_checked:
        words += ["--no-checks"]
    if "slurm" in words:  # jobs that run in this process
        words += ["--slurm", "cluster=debug", "--workers", "1"]
    if command == "attack" and run and not {"--out", "--plan"} & set(words):
        words += ["--out", f"{run}/{number}"]
    return [command, *words]


def exit_codes(page: str, words: list[str]) -> set[int]:
    """A gate and a doctor may find a fault, a screening may raise an alarm, and code of a study is refused at first."""
    if page == "docs/security.md" and "--trust" not in words:
        return {2}
    return {0, 1} if "--fail-if" in words or words[0] in ("screen", "doctor") else {0}


@pytest.mark.filterwarnings("ignore")  # of the trackers' own libraries
@pytest.mark.parametrize(("page", "heading"), SECTIONS)
def test_a_section_is_done_as_it_says(
    page: str, heading: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "reader"
    shutil.copytree(workspace, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MEDATTACK_HOME", raising=False)
    for need in NEEDS.get((page, heading), ()):
        need(root)
    text = lines_of_shell(sections(page)[heading])
    run = next((name for name in ("RUNS", "RUN") for line in text if name in line.split()), "")
    if run and "medattack attack" in "".join(text):
        shutil.rmtree(root / run, ignore_errors=True)
    for number, line in enumerate(text):
        if any(part in line for part in NOT_RUN):
            continue
        words = in_place(line, number, run, (page, heading) in CHECKED)
        result = CliRunner().invoke(app, words, env={"MEDATTACK_PROGRESS": "0"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in exit_codes(page, words), f"{page}, {heading}: {line}\n{result.output}"


def test_what_is_listed_stands_on_a_page() -> None:
    texts = ["\n".join(lines_of_shell(text)) for page in PAGES for text in sections(page).values()]
    assert [part for part in NOT_RUN if not any(part in text for text in texts)] == []
    assert set(NEEDS) | CHECKED <= set(SECTIONS)
