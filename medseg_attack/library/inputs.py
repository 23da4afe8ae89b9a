"""Checks of tensors that a program hands over: shapes, ranges and the model's classes, before anything slow happens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.library.models import require_eval
from medseg_attack.models.segmodel import SegModel
from medseg_attack.types import Batch, Case, Window


def batch_of(model: Any, images: Any, masks: Any, cases: Sequence[Case] | None) -> Batch:
    """Images and masks as a batch, each image a case of its own unless `cases` say what they are.

    Raises:
        InputError: the model is not wrapped or in train mode, or images, masks, cases and model do not fit each other.
    """
    _check_model(model)
    _check_images(model, images)
    _check_masks(model, images, masks)
    images, masks = _with_gradients(images), _with_gradients(masks)
    if cases is None:
        spacing = (1.0,) * model.dims
        cases = [
            Case(name, name, name, image, mask, spacing, Window(0.0, 1.0), classes=model.task.classes)
            for name, image, mask in zip(map(str, range(len(images))), images.cpu(), masks.cpu(), strict=True)
        ]
    elif len(cases) != len(images):
        raise InputError(f"expected a case for each of {len(images)} images, got {len(cases)}; give batch.cases")
    elif any(not torch.equal(case.image, image) for case, image in zip(cases, images.cpu(), strict=True)):
        raise InputError("expected the images of the cases, got others; give batch.image, or leave out cases")
    return Batch(images, masks, tuple(cases))


def _with_gradients(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it was made in inference mode, in which nothing has a gradient ever after."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor


def _check_model(model: Any) -> None:
    if not isinstance(model, SegModel):
        kind = type(model).__name__
        raise InputError(f"expected a wrapped model, got a {kind}; write ma.wrap(net, classes=..., exclusive=...)")
    require_eval(model, "model")


def _check_images(model: SegModel, images: Any) -> None:
    axes = ["b", "c", "slices", "rows", "columns"] if model.dims == 3 else ["b", "c", "rows", "columns"]
    if not isinstance(images, Tensor) or images.ndim != len(axes) or not images.numel():
        got = f"the shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InputError(f"expected images as a tensor ({', '.join(axes)}), got {got}; add the axes that are missing")
    if images.dtype != torch.float32:
        raise InputError(
            f"expected images in float32 from 0 to 1, got {str(images.dtype).removeprefix('torch.')}; write "
            "images.float(), and divide them by the largest value that there can be"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # NaN is refused, too
        raise InputError(
            f"expected images in [0, 1], got values from {low:g} to {high:g}; subtract what is shown as black, divide "
            "by the width of the window and clamp"
        )
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), images.device)
    if images.device != device:
        raise InputError(f"expected images on {device}, where the model is, got {images.device}; move one of them")


def _check_masks(model: SegModel, images: Tensor, masks: Any) -> None:
    task = model.task
    shape = (len(images), len(task.classes), *images.shape[2:])
    if not isinstance(masks, Tensor) or tuple(masks.shape) != shape:
        got = f"the shape {tuple(masks.shape)}" if isinstance(masks, Tensor) else f"a {type(masks).__name__}"
        raise InputError(
            f"expected masks {shape}, one channel for each of {', '.join(task.classes)}, got {got}; stack a mask per "
            "class, from numbers with F.one_hot(labels, k).movedim(-1, 1).bool()"
        )
    if masks.dtype != torch.bool:
        kind = str(masks.dtype).removeprefix("torch.")
        raise InputError(f"expected masks of True and False, got {kind}; write masks.bool(), or masks > 0.5")
    if masks.device != images.device:
        raise InputError(f"expected masks on {images.device}, where the images are, got {masks.device}; move them")
    if task.exclusive and not bool((masks.sum(1) == 1).all()):
        raise InputError(
            f"expected each pixel in one of {', '.join(task.classes)}, which exclude each other, got pixels in none or "
            "in several; mark the background, or wrap the network with exclusive=False"
        )
