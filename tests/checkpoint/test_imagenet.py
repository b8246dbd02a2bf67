"""ImageNet weights by name: torchvision's ResNets and VGG-16, detectron2's layouts, and files that do not fit."""

import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.projects.deeplab.resnet import DeepLabStem
from torch import Tensor, nn

import seg_ext.modeling  # noqa: F401  registers the backbones
from seg_ext.checkpoint import Checkpointer
from seg_ext.checkpoint.imagenet import widen
from seg_ext.config import get_cfg
from seg_ext.errors import UserError

STAGES = ["res2", "res3", "res4", "res5"]


class Model(nn.Module):
    """A backbone where a segmentor has it, with whatever lay in memory for weights unless `fresh`."""

    def __init__(
        self, kind: str = "resnet", *, channels: int = 3, vgg: dict | None = None, fresh: bool = False, **resnets
    ) -> None:
        super().__init__()
        cfg = get_cfg()
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = f"build_seg_ext_{kind}_backbone", 0
        cfg.MODEL.PIXEL_MEAN = [0.0] * channels
        cfg.MODEL.RESNETS.update({"NORM": "BN", "STRIDE_IN_1X1": False, "OUT_FEATURES": STAGES, "DEPTH": 18, **resnets})
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if cfg.MODEL.RESNETS.DEPTH < 50 else 256
        cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = STAGES, 8
        cfg.MODEL.VGG.update(vgg or {})
        cfg.MODEL.DEVICE = "cpu" if fresh else "meta"
        with torch.device(cfg.MODEL.DEVICE):
            self.backbone = build_backbone(cfg)
        if not fresh:
            self.to_empty(device="cpu")
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.backbone(x)


def used(net: nn.Module) -> nn.Module:
    """The network with BatchNorm statistics that are not the initial ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(values, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked += 7
    return net.eval()


def resnet(depth: int) -> nn.Module:
    return used(getattr(torchvision.models, f"resnet{depth}")(weights=None))


@pytest.fixture(scope="module")
def r18() -> nn.Module:
    return resnet(18)


def saved(file: Path, content: object) -> str:
    torch.save(content, file)
    return str(file)


@torch.no_grad()
def stages_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    found = {}
    for name, layer in zip(STAGES, (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
        found[name] = x = layer(x)
    return found


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, x in want.items():
        assert x.std() > 1e-3
        assert (got[name] - x).abs().max() <= 1e-5 * x.abs().max(), name


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the loggers of loading say, each as "LEVEL text"."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(f"{record.levelname} {record.getMessage()}")

    handler, loggers = Handler(), [logging.getLogger(name) for name in ("seg_ext", "fvcore", "detectron2")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield said
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


WRAPS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 90},
    "state_dict": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "arch": "resnet"},
}


@pytest.mark.parametrize(("depth", "wrap"), [(18, "bare"), (18, "model"), (18, "state_dict"), (50, "bare")])
def test_torchvision_resnet_gives_its_features(tmp_path: Path, depth: int, wrap: str, messages: list[str]) -> None:
    theirs, ours = resnet(depth), Model(DEPTH=depth)
    Checkpointer(ours).load(saved(tmp_path / "r.pth", WRAPS[wrap](theirs.state_dict())))
    x = torch.randn(1, 3, 65, 97)
    assert_equal(ours(x), stages_of(theirs, x))
    total, count = len(theirs.state_dict()), len(ours.state_dict())
    assert f"INFO {total - 2} of {total} tensors, of a torchvision ResNet, go to backbone.*" in messages
    assert any(text.startswith("INFO weights ") and f" of {count} tensors loaded" in text for text in messages)
    assert not [text for text in messages if text.startswith("WARNING")]  # fc is left over without complaint


def test_torchvision_resnet_goes_below_a_feature_pyramid(tmp_path: Path, r18: nn.Module) -> None:
    ours = Model("resnet_fpn")
    Checkpointer(ours).load(saved(tmp_path / "r.pth", r18.state_dict()))
    x = torch.randn(1, 3, 64, 96)
    assert_equal(ours(x), stages_of(r18, x))


def test_dilated_and_cascaded_variants_take_the_same_file(tmp_path: Path, r18: nn.Module, messages: list[str]) -> None:
    ours = Model(fresh=True, OUTPUT_STRIDE=8, CASCADE=1, OUT_FEATURES=["res5", "res6"])
    fresh = {key: x.clone() for key, x in ours.backbone.res6.state_dict().items()}
    Checkpointer(ours).load(saved(tmp_path / "r.pth", r18.state_dict()))
    want = r18.layer4.state_dict()
    assert torch.equal(ours.backbone.res5[1].conv2.weight, want["1.conv2.weight"])
    assert torch.equal(ours.backbone.res5[0].shortcut.norm.running_var, want["0.downsample.1.running_var"])
    assert all(torch.equal(x, fresh[key]) for key, x in ours.backbone.res6.state_dict().items())
    assert any("backbone.res6" in text for text in messages if text.startswith("WARNING"))


def test_frozen_statistics_are_filled_too(tmp_path: Path, r18: nn.Module) -> None:
    ours = Model(NORM="FrozenBN", OUT_FEATURES=["res2"])
    Checkpointer(ours).load(saved(tmp_path / "r.pth", r18.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    assert_equal(ours(x), {"res2": stages_of(r18, x)["res2"]})


def test_group_norm_does_not_take_the_scales_of_batch_norm(tmp_path: Path, r18: nn.Module, messages: list[str]) -> None:
    ours = Model(fresh=True, NORM="GN")
    Checkpointer(ours).load(saved(tmp_path / "r.pth", r18.state_dict()))
    assert torch.equal(ours.backbone.stem.conv1.weight, r18.conv1.weight)
    assert torch.equal(ours.backbone.stem.conv1.norm.weight, torch.ones(64))
    assert "WARNING left out 20 BatchNorm layers: the model has no running statistics there" in messages


@pytest.mark.parametrize("norm", ["BN", ""])
def test_torchvision_vgg_gives_its_features(tmp_path: Path, norm: str) -> None:
    from torchvision.models.vgg import cfgs, make_layers

    theirs = used(make_layers(cfgs["D"], batch_norm=bool(norm)))
    state = {f"features.{key}": x for key, x in theirs.state_dict().items()}
    ours = Model("vgg", vgg={"NORM": norm, "OUT_FEATURES": ["pool3", "pool5"]})
    file = saved(tmp_path / "v.pth", {**state, "classifier.6.bias": torch.zeros(1000)})
    Checkpointer(ours).load(file)
    x = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        assert_equal(ours(x), {"pool3": theirs[: 24 if norm else 17](x), "pool5": theirs(x)})


def caffe2(state: dict[str, Tensor]) -> dict[str, object]:
    """A bare detectron2 ResNet's state dict under the names of the Caffe2 model zoo."""
    names = {".shortcut": ".branch1", ".conv1": ".branch2a", ".conv2": ".branch2b", ".conv3": ".branch2c"}
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    renamed: dict[str, object] = {"fc1000_w": torch.zeros(1000, 2048).numpy(), "fc1000_b": torch.zeros(1000).numpy()}
    for key, x in state.items():
        layer, _, kind = key.rpartition(".")
        if kind in kinds:
            layer, dot, _ = layer.partition(".norm")
            layer = re.sub(r"\.\w+$", lambda m: names[m[0]], layer) if layer.startswith("res") else "conv1"
            renamed[f"{layer}.bn_{kinds[kind]}".replace(".", "_") if dot else f"{layer}.w".replace(".", "_")] = (
                x.numpy()
            )
    return renamed


@pytest.mark.parametrize(("kind", "channels"), [("resnet", 3), ("resnet_fpn", 4)])
def test_caffe2_names_load_as_before(tmp_path: Path, kind: str, channels: int) -> None:
    theirs = used(Model(fresh=True, DEPTH=50))
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe2(theirs.backbone.state_dict())))
    ours = Model(kind, channels=channels, DEPTH=50)
    Checkpointer(ours).load(str(tmp_path / "R-50.pkl"))
    x = torch.randn(1, 1, 64, 64)
    want = theirs(x.expand(-1, 3, -1, -1))
    assert_equal(ours(x.expand(-1, channels, -1, -1)), {name: want[name] for name in STAGES})


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_a_deep_stem_under_detectron2s_names_loads(tmp_path: Path, suffix: str) -> None:
    theirs = used(ResNet(DeepLabStem(3, 64), ResNet.make_default_stages(18, norm="BN"), out_features=STAGES))
    file = tmp_path / f"R-103.{suffix}"
    if suffix == "pkl":
        arrays = {key: x.numpy() for key, x in theirs.state_dict().items()}
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": True}))
    else:
        saved(file, theirs.state_dict())
    ours = Model(DEEP_STEM=True)
    Checkpointer(ours).load(str(file))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_equal(ours(x), theirs(x))


def test_a_grey_image_gives_what_its_rgb_copy_gave(tmp_path: Path, r18: nn.Module) -> None:
    ours = Model(channels=1)
    Checkpointer(ours).load(saved(tmp_path / "r.pth", r18.state_dict()))
    x = torch.randn(1, 1, 64, 64)
    assert_equal(ours(x), stages_of(r18, x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_widening_keeps_the_response_to_equal_channels_and_the_order(channels: int) -> None:
    weight = torch.randn(5, 3, 7, 7)
    wide = widen(weight, channels)
    assert wide.shape == (5, channels, 7, 7)
    torch.testing.assert_close(wide.sum(1), weight.sum(1))
    if channels >= 3:
        torch.testing.assert_close(wide[:, :3] * channels / 3, weight)
        torch.testing.assert_close(
            wide[:, 3:], weight.mean(1, keepdim=True).expand(-1, channels - 3, -1, -1) * 3 / channels
        )
    else:
        torch.testing.assert_close(wide, weight.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels)


@pytest.mark.parametrize(
    ("depth", "keys", "text"),
    [
        (18, {"DEPTH": 34}, r"res2\.2\.conv1\.weight is missing in the file, \(64, 64, 3, 3\) in the model"),
        (34, {"DEPTH": 18}, r"res2\.2\.conv1\.weight is \(64, 64, 3, 3\) in the file, missing in the model"),
        (18, {"DEPTH": 50}, r"another depth, width or stem"),
        (18, {"DEEP_STEM": True}, r"stem\.conv1\.weight is \(64, 3, 7, 7\) in the file, \(32, 3, 3, 3\) in the model"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, depth: int, keys: dict, text: str) -> None:
    file = saved(tmp_path / "r.pth", resnet(depth).state_dict())
    with pytest.raises(UserError, match=f"weights .*r.pth: a torchvision ResNet of another .*{text}|{text}"):
        Checkpointer(Model(**keys)).load(file)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"features.0.weight": torch.zeros(64, 3, 3, 3)},
            "nothing in it fits the model: it seems to be a torchvision VGG; "
            "takes a checkpoint of this model or a torchvision ResNet or a detectron2 ResNet",
        ),
        ({"blob": torch.zeros(1)}, "nothing in it fits the model: it seems to be tensors named blob; takes"),
        ({"stem.conv1.weight": torch.zeros(1)}, "nothing in it fits the model"),
        ([torch.zeros(1)], "holds no state dict"),
        ({"model": {"epoch": 3}}, "holds no state dict"),
    ],
)
def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path, content: object, text: str) -> None:
    file = saved(tmp_path / "r.pth", content)
    with pytest.raises(UserError) as error:
        Checkpointer(Model(OUT_FEATURES=["res2"])).load(file)
    assert str(error.value).startswith(f"weights {file}: {text}") and "\n" not in str(error.value)


def test_the_vgg_of_another_depth_is_refused(tmp_path: Path) -> None:
    state = {f"features.{index}.weight": torch.zeros(8, 3, 3, 3) for index in (0, 3, 6)}
    with pytest.raises(UserError, match=r"weights .*v.pth: .*vgg16 or vgg16_bn, not 3 convolutions"):
        Checkpointer(Model("vgg", vgg={"WIDTH": 8, "NORM": ""})).load(saved(tmp_path / "v.pth", state))
