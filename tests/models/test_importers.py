"""Networks that others keep in their own way, each through the one spec that names it."""

import json
import py_compile
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import cache_from_source
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg_attack.checks.model.asking import check_model
from medseg_attack.data.formats.nifti import layout, read_nifti
from medseg_attack.errors import InputError
from medseg_attack.models.importers.axis_order import reorient
from medseg_attack.models.importers.output import PickOutput
from medseg_attack.models.model_ref import resolve
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.numerics.log_odds import softmax_log_odds
from medseg_attack.registry import build
from medseg_attack.types import Batch, Case, Task, Window

TASK = Task("organs", ("background", "liver", "spleen"), exclusive=True)
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, classes, 1)
    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))

class Dict(Net):
    def forward(self, x):
        logits = super().forward(x)
        return {"out": logits, "aux": (logits[:, :1], 2 * logits), "deep": torch.stack([logits, logits * 3], 1)}

class Sure(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Cube(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv3d(1, 3, 3, padding=1)
    def forward(self, x):
        return self.net(x)

def net(): return Net()
def of_task(task): return Net(len(task.classes))
def four(): return Net(4)
def one(): return Net(1)
def text(): return "net"
def fails(): raise KeyError("weights")
def nested(): return Dict()
def sure(): return Sure()
def cube(): return Cube()
def shrinks(): return nn.Sequential(Net(), nn.AvgPool2d(2))
def whole(task):
    from medseg_attack.models.segmodel import SegModel
    return SegModel(Net(len(task.classes)), task, stride=4)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py and weights of its `Net`, which is also the working directory."""
    (tmp_path / "net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)  # another test's module of that name
    save_file(network().state_dict(), tmp_path / "net.safetensors")
    return tmp_path


def namespace() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(SOURCE, names)
    return names


def network(name: str = "Net") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net: nn.Module = namespace()[name]()
    return net.eval()


def image(*shape: int) -> Tensor:
    return torch.rand(*(shape or (2, 1, 8, 12)), generator=torch.Generator().manual_seed(0))


def own_model(spec: str, task: Task = TASK) -> SegModel:
    model: SegModel = build(spec, "model")(task)
    return model.eval()


def same(spec: str) -> None:
    """The spec's model answers as the network does, and so do its gradients."""
    with frozen(own_model(spec)) as model:
        x, known = image().requires_grad_(), SegModel(network(), TASK)
        torch.testing.assert_close(model(x), known(x))
        result = torch.autograd.grad(model(x).square().sum(), x)[0]
        torch.testing.assert_close(result, torch.autograd.grad(known(x).square().sum(), x)[0])


# where a network comes from


@pytest.mark.parametrize("factory", ["net.py:net", "net.py:of_task", "net:net", "net.py:Net"])
@pytest.mark.parametrize("weights", ["net.safetensors", "net.pth", "trainer.pth"])
def test_a_factory_with_weights(place: Path, factory: str, weights: str) -> None:
    state = network().state_dict()
    torch.save(state, place / "net.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, place / "trainer.pth")
    same(f"own({factory!r}, weights={weights!r})")


def test_a_file_is_read_from_its_source_and_nothing_is_written_beside_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code beside it may be of another source, and the folder is the user's."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    text = "def build(): return __import__('torch').nn.Conv2d(1, 3, {})"
    (place / "planted.py").write_text(text.format(1))
    own_model("own('planted.py:build')")
    assert not (place / "__pycache__").exists()
    (place / "other.py").write_text(text.format(3))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile("other.py", cache_from_source("planted.py"), doraise=True, invalidation_mode=mode)
    weight, _ = own_model("own('planted.py:build')").parameters()
    assert weight.shape == (3, 1, 1, 1)


def test_a_factory_may_return_the_whole_model(place: Path) -> None:
    assert own_model("own('net.py:whole')").stride == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript(place: Path) -> None:
    torch.jit.trace(network(), image()).save("net.ts")
    same("own('net.ts')")


@pytest.mark.parametrize("batch", ["any", "one"])
def test_torch_export(place: Path, batch: str) -> None:
    dynamic = {"x": {0: torch.export.Dim("b")}} if batch == "any" else None
    program = torch.export.export(
        network(), (image() if batch == "any" else image(1, 1, 8, 12),), dynamic_shapes=dynamic
    )
    torch.export.save(program, place / "net.pt2")
    same("own('net.pt2', trust=True)")


def test_an_smp_folder(place: Path) -> None:
    import segmentation_models_pytorch as smp

    net = smp.Unet(
        "mobilenet_v2", encoder_weights=None, encoder_depth=3, decoder_channels=(8, 8, 8), classes=3, in_channels=1
    ).eval()
    net.save_pretrained(place / "hub")
    x = image(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(own_model("own('hub', stride=8)")(x), SegModel(net, TASK)(x))


def test_a_smp_folder_never_downloads(place: Path) -> None:
    import segmentation_models_pytorch as smp

    smp.Unet("mobilenet_v2", encoder_weights=None, classes=3, in_channels=1).save_pretrained(place / "hub")
    config = json.loads((place / "hub" / "config.json").read_text())
    (place / "hub" / "config.json").write_text(json.dumps(config | {"encoder_weights": "imagenet"}))
    assert own_model("own('hub', stride=32)").task == TASK


def bundle(place: Path, definition: dict[str, Any], roi: Any = (8, 8, 8), **others: Any) -> None:
    from monai.networks.nets.unet import UNet

    (place / "bundle" / "configs").mkdir(parents=True)
    (place / "bundle" / "models").mkdir()
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": roi, "overlap": 0.5, "mode": "gaussian"}
    content = {"network_def": definition, "inferer": inferer, "device": "$torch.device('cpu')", "patch": [8, 8, 8]}
    (place / "bundle" / "configs" / "inference.json").write_text(json.dumps(content | others))
    torch.save(UNet(3, 1, 3, (4, 8), (2,)).state_dict(), place / "bundle" / "models" / "model.pt")


UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


def test_a_monai_bundle_brings_its_window(place: Path) -> None:
    from monai.inferers import sliding_window_inference
    from monai.networks.nets.unet import UNet

    bundle(place, UNET)
    model, x = own_model("own('bundle')"), image(1, 1, 10, 9, 8)  # slices, rows, columns
    assert (model.dims, model.window) == (3, (8, 8, 8))
    net = UNet(3, 1, 3, (4, 8), (2,)).eval()
    net.load_state_dict(torch.load(place / "bundle" / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        known = sliding_window_inference(x.permute(0, 1, 4, 3, 2), (8, 8, 8), 1, net, overlap=0.5, mode="gaussian")
        torch.testing.assert_close(model(x), softmax_log_odds(known.permute(0, 1, 4, 3, 2)))


@pytest.mark.parametrize(
    ("turns", "axes"),
    [
        ([{"_target_": "Orientationd", "keys": ["image"], "axcodes": "RAS"}], "-x-yz"),
        ([{"_target_": "monai.transforms.Orientationd", "as_closest_canonical": True}], "-x-yz"),
        ([{"_target_": "Orientationd", "axcodes": "RAS"}, {"_target_": "OrientationD", "axcodes": "SPL"}], "zyx"),
        ([{"_target_": "Orientationd", "axcodes": "@axcodes"}, "$print()", {"_target_": "Spacingd"}], "xyz"),
        ([{"_target_": "Orientationd", "axcodes": 3}, {"_target_": "Orientationd", "axcodes": "RLS"}], "xyz"),
    ],
)
def test_a_bundle_s_axes_run_as_its_transforms_turn_them(place: Path, turns: list[Any], axes: str) -> None:
    """Decathlon's files are RAS, and prepared slices run to the left and to the back: Dice was that of chance."""
    bundle(place, UNET, preprocessing={"_target_": "Compose", "transforms": "@turns"}, turns=turns)
    x = image(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(own_model("own('bundle')")(x), own_model(f"own('bundle', axes={axes!r})")(x))


def test_an_inferer_may_be_a_reference_and_has_monai_s_usual_options(place: Path) -> None:
    bundle(place, UNET, inferer="@windows", windows={"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8]})
    assert own_model("own('bundle')").window == (8, 8, 8)
    config = place / "bundle" / "configs" / "inference.json"
    for name, value in (("sigma_scale", 0.3), ("padding_mode", "reflect"), ("cval", -1.0)):
        content = json.loads(config.read_text())
        content["windows"] = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], name: value}
        config.write_text(json.dumps(content))
        with pytest.raises(InputError, match=rf"{name}: expected .* in .*inference\.json, got {value!r}"):
            own_model("own('bundle')")


def test_windows_of_reversed_axes_are_laid_out_from_their_end(place: Path) -> None:
    """MONAI's last window is moved back into the scan, and an odd voxel of padding lies behind it."""
    from monai.inferers import sliding_window_inference
    from monai.networks.nets.unet import UNet

    bundle(place, UNET, preprocessing={"transforms": [{"_target_": "Orientationd", "axcodes": "RAS"}]})
    net = UNet(3, 1, 3, (4, 8), (2,)).eval()
    net.load_state_dict(torch.load(place / "bundle" / "models" / "model.pt", weights_only=True))
    x = image(1, 1, 13, 14, 5)
    with torch.no_grad():
        turned = x.flip(3, 4).permute(0, 1, 4, 3, 2)
        known = sliding_window_inference(turned, (8, 8, 8), 1, net, overlap=0.5, mode="gaussian")
        known = known.permute(0, 1, 4, 3, 2).flip(3, 4)
        torch.testing.assert_close(own_model("own('bundle')")(x), softmax_log_odds(known))


def test_a_bundle_s_window_is_in_the_order_of_monai(place: Path) -> None:
    """roi_size is of x, y, z: the network sees windows of that shape, and a thin one lies along the slices."""
    bundle(place, UNET, [16, 12, 8])
    model, shapes = own_model("own('bundle')"), []
    assert model.window == (8, 12, 16)
    net = next(module for module in model.modules() if type(module).__name__ == "UNet")
    net.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[2:])))
    with torch.no_grad():
        model(image(1, 1, 10, 12, 16))
    assert set(shapes) == {(16, 12, 8)}
    assert own_model("own('bundle', axes='zyx', window=(8, 8, 16))").window == (8, 8, 16)
    config = place / "bundle" / "configs" / "inference.json"
    config.write_text(config.read_text().replace("[16, 12, 8]", "[16, 12]"))
    with pytest.raises(InputError, match="expected roi_size of 3 sides"):
        own_model("own('bundle')")


def test_a_network_is_shown_the_axes_that_it_was_trained_on(place: Path) -> None:
    save_file(network("Cube").state_dict(), place / "cube.safetensors")
    plain = own_model("own('net.py:cube', dims=3, window=(4, 4, 4), weights='cube.safetensors')")
    other = own_model("own('net.py:cube', dims=3, window=(4, 4, 4), weights='cube.safetensors', axes='-x-yz')")
    x = image(1, 1, 4, 6, 5)
    reoriented = x.flip(3, 4).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(other(x), plain(reoriented).permute(0, 1, 4, 3, 2).flip(3, 4))
    assert not torch.allclose(other(x), plain(x))
    leaf = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(other(leaf).square().sum(), leaf)
    leaf = reoriented.clone().requires_grad_()
    (known,) = torch.autograd.grad(plain(leaf).square().sum(), leaf)
    torch.testing.assert_close(result, known.permute(0, 1, 4, 3, 2).flip(3, 4))


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "SRA"])
def test_axes_of_an_axial_scan_are_those_of_monai_s_orientation(tmp_path: Path, codes: str) -> None:
    """-x-yz of slices, rows, columns as prepared is what Orientation("RAS") makes of the file."""
    from monai.transforms import LoadImage, Orientation

    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(("R", "A", "S")), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    values = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0)).numpy()
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.diag((1.0, 1.0, 3.0, 1.0))).as_reoriented(turn), path)
    volume = read_nifti(path)
    prepared = layout(volume)[0].from_file(volume.stored)
    shown: list[Tensor] = []
    net = reorient(Answering(shown), "-x-yz", 3)
    net(torch.from_numpy(prepared.copy())[None, None])
    known = Orientation(axcodes="RAS", labels=None)(LoadImage(image_only=True, ensure_channel_first=True)(path))
    assert torch.equal(shown[0][0], known.as_tensor())


class Answering(nn.Module):
    """Answers what it is shown, and keeps it."""

    def __init__(self, shown: list[Tensor]) -> None:
        super().__init__()
        self.shown = shown

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return x


@pytest.mark.parametrize("axes", ["xy", "xxz", "abc", "x y z", "--xyz"])
def test_axes_are_each_named_once(place: Path, axes: str) -> None:
    with pytest.raises(InputError, match="expected axes of each of z, y, x once"):
        own_model(f"own('net.py:cube', dims=3, window=(4, 4, 4), axes={axes!r})")


@pytest.mark.parametrize(
    ("roi", "window"), [("@patch", (8, 8, 8)), ("$(8, 8, 8)", None), ([8, 0, 8], None), ([], None)]
)
def test_a_window_is_never_dropped(place: Path, roi: Any, window: tuple[int, ...] | None) -> None:
    bundle(place, UNET, roi)
    if window:
        assert own_model("own('bundle')").window == window
    else:
        with pytest.raises(InputError, match=r"expected roi_size and overlap .*inference\.json as numbers"):
            own_model("own('bundle')")


def test_weights_of_a_bundle_s_encoder_are_not_downloaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import monai.networks.nets as nets

    requests: list[dict[str, Any]] = []

    class RecordingUNet(nets.UNet):
        def __init__(self, pretrained: bool = True, **options: Any) -> None:
            requests.append({"pretrained": pretrained})
            super().__init__(**options)

    RecordingUNet.__module__ = "monai.networks.nets.unet"
    monkeypatch.setattr(nets, "UNet", RecordingUNet)
    bundle(place, UNET | {"pretrained": True})
    assert own_model("own('bundle')").task == TASK
    assert requests == [{"pretrained": False}]


class TestOnnx:
    @pytest.fixture(autouse=True)
    def file(self, place: Path) -> None:
        pytest.importorskip("onnxruntime")
        onnx = pytest.importorskip("onnx")
        first, last = network().first, network().last

        def node(kind: str, *names: str, **attributes: Any) -> Any:
            return onnx.helper.make_node(kind, names[:-1], names[-1:], **attributes)

        graph = onnx.helper.make_graph(
            [
                node("Conv", "x", "w1", "b1", "h", pads=[1, 1, 1, 1]),
                node("Tanh", "h", "t"),
                node("Conv", "t", "w2", "b2", "y"),
            ],
            "net",
            [onnx.helper.make_tensor_value_info("x", 1, [1, 1, 8, 12])],
            [onnx.helper.make_tensor_value_info("y", 1, [1, 3, 8, 12])],
            [
                onnx.numpy_helper.from_array(t.detach().numpy(), n)
                for n, t in (("w1", first.weight), ("b1", first.bias), ("w2", last.weight), ("b2", last.bias))
            ],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, place / "net.onnx")

    def test_it_answers(self) -> None:
        with torch.no_grad():
            torch.testing.assert_close(own_model("own('net.onnx')")(image()), SegModel(network(), TASK)(image()))

    def test_it_answers_where_the_file_does_not_say_of_which_shape(self, place: Path) -> None:
        import onnx

        model = onnx.load(place / "net.onnx")
        model.graph.input[0].type.tensor_type.ClearField("shape")
        onnx.save(model, place / "net.onnx")
        with torch.no_grad():
            torch.testing.assert_close(own_model("own('net.onnx')")(image()), SegModel(network(), TASK)(image()))

    def test_it_is_a_black_box(self) -> None:
        model, x = own_model("own('net.onnx')"), image()
        target = model.decide(model(x))
        assert model.black_box
        with pytest.raises(InputError, match="expected an attack without gradients for a network in ONNX"):
            build("pgd", "attack")(model, x, target, [0, 1])
        assert build("noise", "attack")(model, x, target, [0, 1]).image.shape == x.shape

    def test_it_is_examined_without_a_gradient(self) -> None:
        model, x = own_model("own('net.onnx')"), image()
        cases = [
            Case(n, n, n, scan, mask, (1.0, 1.0), Window(0, 1))
            for n, scan, mask in zip("ab", x, model.decide(model(x)), strict=True)
        ]
        assert not {finding.code for finding in check_model(model, Batch.of(cases))} & {"MA002", "MA017"}

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"take an image of shape \(1, 1, 6, 6\)"):
            own_model("own('net.onnx')")(image(1, 1, 6, 6))

    def test_other_channels_are_refused(self) -> None:
        for spec, task in (("own('net.onnx', channels=3)", TASK), ("own('net.onnx')", replace(TASK, channels=2))):
            n = 3 if task is TASK else 2
            with pytest.raises(InputError, match=f"expected an image of 1 channel for the ONNX network, got {n}"):
                own_model(spec, task)(image(1, task.channels, 8, 12))

    def test_two_files_that_differ_are_two_models(self, place: Path) -> None:
        before = resolve("own('net.onnx')", TASK).weights_hash
        content = (place / "net.onnx").read_bytes()
        (place / "copy.onnx").write_bytes(content)
        assert resolve("own('copy.onnx')", TASK).weights_hash == before


# what it returns


@pytest.mark.parametrize(("output", "factor"), [("out", 1), ("aux.1", 2), ("deep.1", 3)])
def test_a_part_of_the_answer_is_named(place: Path, output: str, factor: float) -> None:
    spec = f"own('net.py:nested', weights='net.safetensors', output={output!r}, head='sigmoid')"
    with torch.no_grad():
        torch.testing.assert_close(own_model(spec)(image()), factor * network()(image()))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_numbers_in_place_of_maps_are_attacked_from_python(shape: tuple[int, ...]) -> None:
    class Numbers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(shape)

    with pytest.raises(InputError, match=r"got a tensor of shape .*, or attack numbers from Python \(docs/python.md\)"):
        PickOutput(Numbers(), "", 2)(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("", "got a dict with out, aux, deep; name the part that is meant with output="),
        ("logits", "expected 'logits' of output='logits' in the network's answer, got a dict with out, aux, deep"),
        ("aux", "got 2 parts: a tensor of shape"),
        ("aux.2", "expected '2' of output='aux.2'"),
        ("deep", r"expected maps of shape \(batch, classes, rows, columns\) from the network, got a tensor of shape"),
        ("aux.0", "expected 3 channels from the network, one for each of background, liver, spleen, got 1 channels"),
    ],
)
def test_an_answer_that_is_not_understood_is_described(place: Path, output: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        own_model(f"own('net.py:nested', output={output!r})")(image())


class Answers(nn.Module):
    """A network whose answer is what `change` makes of its logits."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(torch.cat((4 * x - 2, 1 - 4 * x), 1))


TWO = Task("two", ("a", "b"))


@pytest.mark.parametrize("change", [Tensor.long, Tensor.int, lambda z: z > 0])
def test_whole_numbers_are_taken_as_floats(change: Callable[[Tensor], Tensor]) -> None:
    image = torch.rand(2, 1, 5, 6)
    log_odds = SegModel(PickOutput(Answers(change), "", 2), TWO)(image)
    assert log_odds.dtype == torch.float32
    assert torch.equal(log_odds, change(torch.cat((4 * image - 2, 1 - 4 * image), 1)).float())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda z: z.to(torch.complex64), "expected real numbers from the network, got torch.complex64"),
        (lambda z: z.to("meta"), "expected the network's answer on cpu, where its input is, got meta"),
        (lambda z: sys.exit(0), "got 'SystemExit: 0 in test_importers.py"),
        (lambda z: z.nothing, "has no attribute 'nothing' in test_importers.py"),
    ],
)
def test_an_answer_that_is_none_is_refused(change: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        SegModel(PickOutput(Answers(change), "", 2), TWO)(torch.rand(1, 1, 5, 6))


def test_compiled_networks_keep_what_a_second_gradient_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = SimpleNamespace(donated_buffer=True)
    monkeypatch.setitem(sys.modules, "torch._functorch.config", compiler)
    PickOutput(Answers(Tensor.float), "", 2)
    assert compiler.donated_buffer is False


@pytest.mark.parametrize("error", [MemoryError("none is left"), RuntimeError("[enforce fail] not enough memory: 9")])
def test_a_network_that_memory_is_short_of_says_so_itself(error: Exception) -> None:
    """So that the loop may take fewer cases at a time."""

    def fail(z: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        PickOutput(Answers(fail), "", 2)(torch.rand(1, 1, 5, 6))
    assert caught.value is error


def test_probabilities_become_the_log_odds_of_the_logits(place: Path) -> None:
    model, x = (
        own_model("own('net.py:sure', weights='net.safetensors', head='probabilities')"),
        image().requires_grad_(),
    )
    known = SegModel(network(), TASK)
    torch.testing.assert_close(model(x), known(x), rtol=1e-4, atol=1e-5)
    result = torch.autograd.grad(model(x).square().sum(), x)[0]
    torch.testing.assert_close(result, torch.autograd.grad(known(x).square().sum(), x)[0], rtol=1e-3, atol=1e-4)


def test_probabilities_of_exactly_0_and_1_have_finite_log_odds() -> None:
    model = SegModel(nn.Identity(), Task("t", ("a",)), head="probabilities")
    result = model(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)).flatten().tolist()
    assert result == pytest.approx([-16.64, 0.0, 16.64], abs=0.01)


@pytest.mark.parametrize("head", ["sigmoid", "probabilities"])
def test_one_channel_is_enough_for_two_exclusive_classes(place: Path, head: str) -> None:
    task = Task("t", ("background", "organ"), exclusive=True)
    net = nn.Identity() if head == "sigmoid" else nn.Sigmoid()
    logits = torch.linspace(-3, 3, 6).view(1, 1, 2, 3)
    model = SegModel(net, task, head=head)  # type: ignore[arg-type]
    torch.testing.assert_close(model(logits), torch.cat((-logits, logits), 1))
    assert torch.equal(model.decide(model(logits))[:, 1:], logits > 0)
    with pytest.raises(InputError, match="expected 2 channels"):
        SegModel(nn.Identity(), task)(logits)


@pytest.mark.parametrize(("normalise", "mean", "std"), [("zscore", 0.0, 1.0), ("symmetric", 0.0, 0.57)])
def test_inputs_are_normalised_inside(place: Path, normalise: str, mean: float, std: float) -> None:
    normalised = own_model(f"own('net.py:net', normalise={normalise!r})").normalise(image())
    assert normalised.mean().item() == pytest.approx(mean, abs=0.1)
    assert normalised.std().item() == pytest.approx(std, abs=0.05)


def test_windows_and_mirrors_are_options(place: Path) -> None:
    model = own_model("own('net.py:cube', dims=3, window=(4, 4, 4), mirror=(0, 2))")
    assert model(image(1, 1, 5, 6, 7)).shape == (1, 3, 5, 6, 7)
    assert own_model("own('net.py:net', mirror=(0,))")(image()).shape == (2, 3, 8, 12)


# what goes wrong, in a sentence


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("own()", r"expected own\(NETWORK\), got own\(\)"),
        ("own('net.py')", "a Python file without :factory"),
        ("own('nothing')", "neither of these"),
        ("own('none.py:net')", "expected a Python file at none.py, got none"),
        ("own('no_such_package:net')", "expected to import no_such_package .* ModuleNotFoundError"),
        ("own('net.py:nett')", "expected 'nett' in net.py, got no such name"),
        ("own('net.py:fails')", r"to make a network, got KeyError: 'weights' in net.py, line \d+"),
        ("own('net.py:text')", "expected a torch.nn.Module from own.* got str"),
        ("own('broken.py:net')", "expected to import broken.py .* got SyntaxError"),
        ("own('net.py:net', weights='none.pth')", "in none.pth, a file of safetensors or .*name another: . holds"),
        ("own('net.py:four', weights='net.safetensors')", "expected the weights of this network in net.safetensors"),
        ("own('net.py:net', weights='pickle.pth')", "got objects that would have to be unpickled"),
        ("own('net.py:net', weights='text.pth')", "expected weights in text.pth|tensors alone in text.pth"),
        ("own('net.py:net', weights='list.pth')", "expected tensors by name in list.pth"),
        ("own('net.py:net', head='softmx')", "unknown head: .*'softmx'; did you mean softmax"),
        ("own('net.py:net', normalise='z')", "unknown normalise"),
        ("own('net.py:net', dims=4)", "expected dims=2 or dims=3, got 4"),
        ("own('net.py:whole', dims=3)", "expected dims=2, as the SegModel of"),
        ("own('none.ts')", r"none.ts, a file of TorchScript \(.ts, .pt\), torch.export"),
        ("own('text.ts')", "expected a TorchScript file that torch .* reads in text.ts"),
        ("own('text.pt2', trust=True)", "expected a torch.export file that torch .* reads in text.pt2"),
        ("own('text.ts', weights='net.safetensors')", "expected no weights= beside text.ts"),
        ("own('empty')", "expected a network's folder at empty, .* got neither"),
        ("own('other')", "expected an architecture of segmentation-models-pytorch"),
    ],
)
def test_bad_input_is_said(place: Path, spec: str, says: str) -> None:
    (place / "broken.py").write_text("def net(:")
    for name in ("text.pth", "text.ts", "text.pt2"):
        (place / name).write_text("no network at all")
    torch.save([1, 2], place / "list.pth")
    torch.save({"net": nn.Linear(1, 1)}, place / "pickle.pth")
    (place / "empty").mkdir()
    (place / "other").mkdir()
    (place / "other" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=says):
        own_model(spec)


def test_onnx_without_its_runtime_names_the_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (place / "net.onnx").write_text("")
    with pytest.raises(InputError, match=r"pip install 'medseg-attack\[onnx\]'"):
        own_model("own('net.onnx')")


def test_a_network_of_other_classes_or_grids_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match=r"expected 3 channels from the network, .* got 4 channels"):
        own_model("own('net.py:four')")(image())
    with pytest.raises(InputError, match=r"on the grid \(8, 12\) of its input, got \(4, 6\)"):
        own_model("own('net.py:shrinks')")(image())


# what stands for it


def test_the_identity_is_of_contents_not_of_places(place: Path) -> None:
    first = resolve("own('net.py:net', weights='net.safetensors')", TASK)
    (place / "sub").mkdir()
    for name in ("net.py", "net.safetensors"):
        (place / "sub" / name).write_bytes((place / name).read_bytes())
    moved = resolve("own('sub/net.py:net', weights='sub/net.safetensors')", TASK)
    assert moved.weights_hash == first.weights_hash
    assert first.card["n_parameters"] == sum(p.numel() for p in network().parameters())


@pytest.mark.parametrize(
    "spec", ["own('net.py:nested', weights='', output='out')", "own('net.py:nested', output='out')"]
)
def test_a_folder_of_the_name_of_another_option_is_none_of_the_model(place: Path, spec: str) -> None:
    before = resolve(spec, TASK).weights_hash
    (place / "out").mkdir()
    for name in ("out/run.json", "notes.yaml"):
        (place / name).write_text("{}")
    assert resolve(spec, TASK).weights_hash == before


@pytest.mark.parametrize("change", ["weights", "code", "option"])
def test_what_changes_the_answer_changes_the_identity(place: Path, change: str) -> None:
    spec = "own('net.py:net', weights='net.safetensors')"
    before = resolve(spec, TASK).weights_hash
    if change == "weights":
        save_file({k: v + 1 for k, v in network().state_dict().items()}, place / "net.safetensors")
    if change == "code":
        (place / "net.py").write_text(SOURCE.replace("torch.tanh", "torch.sin"))
    if change == "option":
        spec = "own('net.py:net', weights='net.safetensors', normalise='zscore')"
    assert resolve(spec, TASK).weights_hash != before


def test_a_factory_that_draws_gives_the_same_model_twice(place: Path) -> None:
    state = torch.get_rng_state()
    assert resolve("own('net.py:net')", TASK).weights_hash == resolve("own('net.py:net')", TASK).weights_hash
    assert torch.equal(torch.get_rng_state(), state)


# MONAI's networks


@pytest.mark.parametrize(
    "spec",
    [
        "monai(SegResNet, dims=2)",
        "monai(SegResNet(blocks_down=(1, 1), blocks_up=(1,)), window=(8, 8, 8))",
        "monai(UNet(channels=(4, 8)), window=(8, 8, 8), mirror=(0,))",
        "monai(UNet(channels=(4, 8)), dims=2)",
        "monai(DynUNet(filters=(4, 8, 8), kernel_size=(3, 3, 3), strides=(1, 2, 2)), dims=2, mirror=(0, 1))",
        "monai(DynUNet(filters=(4, 8, 8), kernel_size=(3, 3, 3), strides=(1, 2, 2)))",
        "monai(UNETR(feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2), window=(16, 16, 16))",
        "monai(UNETR(feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2), dims=2, size=(16, 16))",
        "monai(SwinUNETR(feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)), dims=2, window=(64, 64))",
    ],
)
def test_monais_networks_answer_and_have_gradients(spec: str) -> None:
    model = own_model(spec)
    assert build(spec, "model").options == build(respelled(spec), "model").options
    x = image(1, 1, *((10, 9, 11) if model.dims == 3 else (18, 21))).requires_grad_()
    with frozen(model):
        log_odds = model(x)
        (grad,) = torch.autograd.grad(log_odds.square().sum(), x)
    assert log_odds.shape == (1, 3, *x.shape[2:])
    assert (grad != 0).float().mean() > 0.9


def respelled(spec: str) -> str:
    from medseg_attack import registry

    return registry.spec(build(spec, "model"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("monai(dims=4)", "expected dims=2 or dims=3"),
        ("monai(SegResNet, window=(30, 30, 30))", "expected window of 3 sides that are multiples of 8 for SegResNet"),
        ("monai(SwinUNETR, window=(32, 32, 32))", "expected window with a side above 32 for SwinUNETR"),
        ("monai(UNet, dims=2, size=(8, 8))", "expected size with a side above 8 for UNet"),
        ("monai(SegResNet, window=(32, 32))", "expected window of 3 sides"),
        ("monai(UNETR)", "expected the grid of UNETR"),
        ("monai(UNet(channels=()))", "expected a network that MONAI can build"),
        ("monai(pgd)", "monai.net takes something like SegResNet"),
    ],
)
def test_networks_that_cannot_be_are_said(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        own_model(spec)


def test_weights_that_share_memory_are_stored(tmp_path: Path) -> None:
    from medseg_attack.models import checkpoints

    spec = "monai(DynUNet(filters=(4, 8, 8), kernel_size=(3, 3, 3), strides=(1, 2, 2)), window=(8, 8, 8))"
    model = own_model(spec)
    checkpoints.save(tmp_path, model, {"label": spec, "spec": spec})
    again = checkpoints.load(tmp_path, TASK)
    x = image(1, 1, 9, 8, 8)
    assert torch.equal(again(x), model(x))
    assert resolve(str(tmp_path), TASK).dims == 3
