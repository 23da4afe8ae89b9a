"""A network whose weights are read from a file draws none of them, and is the network that was saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medseg_attack import registry
from medseg_attack.models import checkpoints
from medseg_attack.models.networks.blank import BlankParameters
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Task

TASK = Task("toy", ("a", "b"))


def test_parameters_are_not_drawn_and_everything_else_is() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = torch.get_rng_state()
        with BlankParameters():
            layer = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 4))
            nn.init.kaiming_normal_(layer[0].weight)
            nn.init.trunc_normal_(layer[3].weight)
            assert torch.equal(torch.get_rng_state(), before)
            drawn = torch.rand(5)
        assert torch.equal(layer[1].weight, torch.ones(4))
        assert not any(layer[k].weight.any() for k in (0, 2, 3))
        torch.set_rng_state(before)
        assert torch.equal(drawn, torch.rand(5))


@pytest.mark.parametrize("spec", ["unet_small(channels=(4, 8))", "unet"])
def test_a_checkpoint_is_loaded_without_drawing_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = registry.build(spec, "model")(TASK).eval()
    checkpoints.save(tmp_path, model, {"label": "tiny", "spec": spec})
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    built = checkpoints.build_model

    def build_model(*args: Any, **options: Any) -> SegModel:
        before = torch.get_rng_state()
        network = built(*args, **options)
        assert torch.equal(torch.get_rng_state(), before)
        return network

    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: torch.no_grad())  # draws would show
    monkeypatch.setattr(checkpoints, "build_model", build_model)
    loaded = checkpoints.load(tmp_path, TASK)
    assert checkpoints.fingerprint(loaded) == checkpoints.fingerprint(model)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))
