"""SAM's own code with random weights, through the class that the documentation proposes and the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bright import write_bright
from helpers.command import medattack
from helpers.documents import fenced, read_page
from torch import Tensor
from torch.nn import functional

from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.models.prompts import Boxes
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import build
from medseg_attack.runs.reading import read_runs
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Setting

pytest.importorskip("segment_anything", reason="segment-anything is not installed; the extra test brings it")

SIDE = 64  # of the grid that SAM gets
SMALLEST = '''

def smallest():
    """A SAM of 16 channels and one block, whose maps differ from 0."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    sam = Sam(
        ImageEncoderViT(img_size=64, embed_dim=16, depth=1, num_heads=2, out_chans=16, use_rel_pos=True),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16),
            iou_head_hidden_dim=16,
        ),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )
    return sam.eval()


def boxes():
    return Promptable(smallest())


class OfPoints(Promptable):
    def forward(self, images, points, labels):
        maps = []
        for code, *of_image in zip(self.sam.image_encoder(images), points, labels):
            sparse, dense = self.sam.prompt_encoder(points=tuple(of_image), boxes=None, masks=None)
            position = self.sam.prompt_encoder.get_dense_pe()
            maps.append(self.sam.mask_decoder(code[None], position, sparse, dense, False)[0][:, 0])
        return F.interpolate(torch.stack(maps), images.shape[2:], mode="bilinear", align_corners=False)


def points():
    return OfPoints(smallest())
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sam")
    write_bright(root / "scans", slices=3)
    medattack("prepare", root / "scans", "--format", "decathlon", "--test", "1", "--out", root / "data")
    (proposed,) = fenced(read_page("docs/models.md"), "python")
    (root / "sam.py").write_text(proposed + SMALLEST)
    return root


def spec(place: Path, kind: str) -> str:
    factory = {"box": "boxes", "points": "points"}[kind]
    file = str(place / "sam.py")
    return f"own({f'{file}:{factory}'!r}, prompt={kind!r}, channels=3, size=({SIDE}, {SIDE}))"


def of_sam(sam: Any, image: Tensor, box: Tensor) -> Tensor:
    """What SAM itself answers on an image and a box of its grid, on that grid."""
    record = {"image": image, "boxes": box, "original_size": (SIDE, SIDE)}
    (answer,) = sam([record], multimask_output=False)
    grown: Tensor = functional.interpolate(answer["low_res_logits"], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return grown[0, 0]


def test_the_proposed_class_answers_as_sam_does(place: Path) -> None:
    data = open_prepared(place / "data")
    batch = Batch.of([data.read(ref) for ref in data.refs("all", 0, 2)][:6])
    model: SegModel = build(spec(place, "box").replace("size=", "margin=0, size="), "model")(data.task).eval()
    with torch.no_grad():
        log_odds = bind(model, Setting(data.task, batch.cases))(batch.image)
    sam = model.net.net.net.sam  # type: ignore[union-attr]
    seen = 0
    for case, answer in zip(batch.cases, log_odds, strict=True):
        (box,) = Boxes(0).drawn(case.target[1:], torch.Generator()).flatten(1)
        if box.isnan().any():
            continue
        seen += 1
        scale = SIDE / case.image.shape[-1]
        image = functional.interpolate(case.image[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]
        known = of_sam(sam, image.expand(3, -1, -1), ((box + 0.5) * scale - 0.5)[None])
        own = functional.interpolate(known[None, None], case.image.shape[1:], mode="bilinear", antialias=True)[0, 0]
        torch.testing.assert_close(answer[1], own, atol=1e-5, rtol=1e-4)  # against a background of 0
    assert seen > 0


@pytest.mark.parametrize("kind", ["box", "points"])
def test_sam_is_attacked_from_the_command_line(place: Path, tmp_path: Path, kind: str) -> None:
    words = ("--data", place / "data", "--model", spec(place, kind), "--trust", "--home", place / "home", "--no-checks")
    attacks = ("--attack", "averaged(pgd(steps=4), passes=2)", "--attack", "worst_prompt(prompts=3)", "--eps", "0.4")
    shown = medattack("attack", *words, *attacks, "--out", tmp_path / "runs").stdout
    assert "Dice given a prompt of" in " ".join(shown.split())
    rows = read_runs([tmp_path / "runs"])
    attacked = rows[rows["attack"].str.startswith("averaged")]
    assert (attacked["n_adv"] != attacked["n_clean"]).any()
    totals = attacked.sum(numeric_only=True)
    clean, adv = (2 * totals[f"hit_{when}"] / (totals["n_target"] + totals[f"n_{when}"]) for when in ("clean", "adv"))
    assert adv < clean
