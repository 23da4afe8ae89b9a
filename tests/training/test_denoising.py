"""A small denoiser, from its training to a layer in front of a model and a certificate of the model behind it."""

import json
from pathlib import Path

import pytest
import torch
from helpers import blobs
from helpers.certified import scan_of
from helpers.command import medattack

from medseg_attack import registry
from medseg_attack.certificates.smoothing.denoised import Denoised
from medseg_attack.certificates.smoothing.expected_dice import ExpectedDice
from medseg_attack.data.prepared.reading import open_prepared
from medseg_attack.defences.inputs.denoiser import DenoiserLayer
from medseg_attack.defences.models.guarded import guarded
from medseg_attack.errors import InputError
from medseg_attack.models.checkpoints import fingerprint, load_tensors, save_tensors
from medseg_attack.models.networks.denoiser import FILE, Denoiser, denoised, load_denoiser
from medseg_attack.models.segmodel import frozen
from medseg_attack.training.denoising import plan_denoiser, train_denoiser
from medseg_attack.training.options import Options


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("denoiser")
    medattack("prepare", root / "scans", "--format", "phantom(patients=6, slices=3, side=32)", "--out", root / "data")
    return root


def words(home: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--denoiser", "--data", home / "data", "--lr", "3e-3", *more)


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    out = home / "denoiser"
    result = medattack(*words(home, "--epochs", 24, "--out", out))
    assert "are left on validation slices" in result.stdout
    return out


def test_noise_of_every_size_is_less_afterwards_and_none_is_left_as_it_is(home: Path, folder: Path) -> None:
    left = json.loads(medattack(*words(home, "--epochs", 24, "--out", folder, "--json")).stdout)["noise_left"]
    assert set(left) == {"0.05", "0.1", "0.25"}
    assert all(share < 1 for share in left.values())
    image = torch.rand(2, 3, 18, 21, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoised(load_denoiser(str(folder)), image, 0.0), image)
    assert not (folder / "state.safetensors").exists()


def test_a_killed_training_goes_on_to_the_same_weights(home: Path, tmp_path: Path) -> None:
    data = open_prepared(home / "data")
    plan = plan_denoiser(Options("denoiser", "mse", epochs=3, batch_size=4), data)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [record.epoch for record in train_denoiser(plan, data, whole, torch.device("cpu"))] == [1, 2, 3]
    for expected in (1, 2, 3):
        training = train_denoiser(plan, data, parts, torch.device("cpu"))
        assert next(training).epoch == expected
        if expected == 3:
            list(training)
        training.close()
    assert list(train_denoiser(plan, data, parts, torch.device("cpu"))) == []
    ours, theirs = (load_tensors(out / FILE) for out in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_scan_is_denoised_slice_by_slice_and_channel_by_channel(folder: Path) -> None:
    network, scan = load_denoiser(str(folder)), torch.rand(2, 2, 3, 12, 14)
    whole = denoised(network, scan, 0.1)
    alone = denoised(network, scan[1:, 1:, 2], 0.1)
    torch.testing.assert_close(whole[1:, 1:, 2], alone)


def test_denoised_smoothing_is_smoothing_of_the_guarded_model(folder: Path) -> None:
    batch, inner = scan_of("expected_dice"), ExpectedDice(0.1, 40, 0.01)
    model = guarded(blobs.TASK, lambda task: blobs.healthy(), (DenoiserLayer(str(folder), 0.1),))
    around = Denoised(inner, str(folder))
    with frozen(model), frozen(blobs.healthy()) as plain:
        first = inner.bounds(inner.observe(model, batch, [0.05], 1, 32), batch, model, [0.05])
        second = around.bounds(around.observe(plain, batch, [0.05], 1, 32), batch, plain, [0.05])
    assert [(bound.value, bound.low) for bound in first] == [(bound.value, bound.low) for bound in second]


def test_other_weights_are_another_model_and_another_certificate(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_tensors(tmp_path / FILE, Denoiser().state_dict())
    files = (str(folder), str(tmp_path))
    models = [guarded(blobs.TASK, lambda task: blobs.healthy(), (DenoiserLayer(file),)) for file in files]
    assert len(set(map(fingerprint, models))) == 2
    assert len({Denoised(file=file).weights_hash for file in files}) == 2


def test_purification_is_random_and_has_its_own_gradient(folder: Path) -> None:
    layer = DenoiserLayer(str(folder), noise=True, steps=3)
    assert layer.stochastic
    assert layer.differentiable
    model = guarded(blobs.TASK, lambda task: blobs.healthy(), (layer,))
    assert model.is_random
    assert not model.blocks_gradient
    image = blobs.batch(1).image.requires_grad_()
    (grad,) = torch.autograd.grad(model(image).sum(), image)
    assert (grad != 0).float().mean() > 0.3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--defence", "trades"), "expected a denoiser without --defence, got both"),
        (("--model", "unet"), "expected a denoiser without --model, got both"),
        (("--lr", "0"), "expected --lr of at least"),
        (("--epochs", "-1"), "expected --epochs of at least 0"),
    ],
)
def test_what_a_denoiser_has_not_is_refused(home: Path, tmp_path: Path, more: tuple[str, ...], sentence: str) -> None:
    result = medattack(*words(home, "--out", tmp_path / "out", *more), code=2)
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_training_is_refused(home: Path, folder: Path) -> None:
    result = medattack(*words(home, "--epochs", 2, "--out", folder), code=2)
    assert "epochs: there 24, here 2" in " ".join(result.stderr.split())


def test_files_that_are_no_denoiser_are_refused(tmp_path: Path) -> None:
    for text in ("denoiser", f"denoiser(file={str(tmp_path)!r})"):
        layer = registry.build(text, "defence")
        with pytest.raises(InputError, match="expected"):
            guarded(blobs.TASK, lambda task: blobs.healthy(), (layer,))
    save_tensors(tmp_path / FILE, blobs.healthy().state_dict())
    with pytest.raises(InputError, match="expected the weights of a denoiser"):
        load_denoiser(str(tmp_path))
    with pytest.raises(InputError, match="expected a certificate by smoothing for denoised, got demasked"):
        registry.build("denoised(certificate=demasked)", "certificate")
    with pytest.raises(InputError, match=r"expected sigma in \(0, inf\), got 0"):
        registry.build("denoiser(sigma=0)", "defence")
