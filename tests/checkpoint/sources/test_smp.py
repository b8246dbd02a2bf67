"""segmentation_models_pytorch's networks from their state dicts: every tensor placed, the same scores and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from seg_ext.cli.main import main
from seg_ext.engine.predictor import Predictor

CLASSES = 5
THIN = {"decoder_channels": (32, 16, 16, 8, 8)}
NETWORKS = [
    (smp.Unet, "resnet18", THIN),
    pytest.param(smp.Unet, "vgg16_bn", THIN, marks=pytest.mark.slow),
    pytest.param(smp.UnetPlusPlus, "resnet18", THIN, marks=pytest.mark.slow),
    (smp.Linknet, "resnet18", {}),
    (smp.FPN, "resnet18", {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64}),
    (
        smp.FPN,
        "resnet18",
        {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64, "decoder_merge_policy": "cat"},
    ),
    (smp.PSPNet, "resnet18", {"psp_out_channels": 64}),
    (smp.DeepLabV3, "resnet18", {"decoder_channels": 32, "encoder_output_stride": 16}),
    pytest.param(
        smp.DeepLabV3Plus,
        "resnet18",
        {"decoder_channels": 32, "decoder_atrous_rates": (6, 12, 18)},
        marks=pytest.mark.slow,
    ),
    (smp.DeepLabV3Plus, "resnet18", {"decoder_channels": 32, "decoder_aspp_separable": False}),
]
ENCODERS = [
    (smp.Unet, "resnet50"),
    (smp.UnetPlusPlus, "vgg16"),
    (smp.UnetPlusPlus, "resnet101"),
    (smp.Linknet, "vgg16_bn"),
    (smp.FPN, "vgg16"),
    (smp.FPN, "resnext50_32x4d"),
    (smp.PSPNet, "vgg16_bn"),
    (smp.PSPNet, "resnet50"),
    (smp.DeepLabV3, "resnet50"),
    (smp.DeepLabV3Plus, "resnet152"),
]


def on_meta(network: Callable[..., nn.Module], encoder: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return network(encoder, encoder_weights=None, classes=CLASSES, **options)


@pytest.mark.parametrize(("network", "encoder", "options"), NETWORKS)
@torch.no_grad()
def test_scores_are_the_peers(
    kit: SimpleNamespace, network: Callable[..., nn.Module], encoder: str, options: dict
) -> None:
    peer = kit.used(on_meta(network, encoder, **options))
    ours = kit.build("smp", peer.state_dict(), config=options)  # as config.json beside the weights says them
    sizes = ((32, 32),) if "vgg" in encoder else ((32, 32), (32, 64), (64, 32))
    for image in kit.images(*sizes):
        kit.assert_equal(ours.scores(image), peer(kit.normalized(image))[0])


@pytest.mark.parametrize(("network", "encoder"), ENCODERS)
def test_every_tensor_finds_its_place(kit: SimpleNamespace, network: Callable[..., nn.Module], encoder: str) -> None:
    imported, _ = kit.place("smp", on_meta(network, encoder).state_dict())
    deep = ("encoder.layer3", "encoder.layer4", "decoder.center")  # what PSPNet and U-Net++ do not read
    assert all(key.startswith(deep) for key in imported.left_out)


@pytest.mark.parametrize(("options", "feature"), [({}, "conv4"), ({"encoder_depth": 5}, "pool5")])
def test_the_depth_of_a_vgg_comes_from_the_config_beside_it(kit: SimpleNamespace, options: dict, feature: str) -> None:
    imported, _ = kit.place("smp", on_meta(smp.PSPNet, "vgg16_bn", **options).state_dict(), config=options)
    assert imported.config["MODEL"]["SEM_SEG_HEAD"]["IN_FEATURES"] == [feature]


@pytest.mark.parametrize(
    ("network", "options", "text"),
    [
        (smp.DeepLabV3, {"decoder_aspp_separable": True}, "decoder_aspp_separable True: takes False, its default"),
        (smp.Unet, {"decoder_interpolation": "bilinear"}, "decoder_interpolation 'bilinear': takes 'nearest'"),
        (smp.Unet, {"decoder_attention_type": "scse"}, r"unknown tensor decoder.blocks.0.attention1"),
        (smp.PAN, {}, "no network of smp that is known here: UnetPlusPlus, Linknet"),
    ],
)
def test_a_variant_that_is_not_here_is_refused(
    kit: SimpleNamespace, network: Callable[..., nn.Module], options: dict, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        kit.place("smp", on_meta(network, "resnet18", **options).state_dict(), config=options)


@pytest.mark.parametrize(
    "network",
    [
        smp.Linknet,
        *(
            pytest.param(network, marks=pytest.mark.slow)
            for network in (smp.Unet, smp.UnetPlusPlus, smp.FPN, smp.PSPNet, smp.DeepLabV3, smp.DeepLabV3Plus)
        ),
    ],
)
def test_an_image_file_gets_the_labels_of_the_peers_own_pipeline(
    kit: SimpleNamespace, tmp_path: Path, network: Callable[..., nn.Module]
) -> None:
    peer = kit.used(network("resnet18", encoder_weights=None, classes=CLASSES))
    torch.save(peer.state_dict(), tmp_path / "theirs.pth")
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (96, 64))
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    line = ["import-weights", "--from", "smp", str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "out")]
    assert main([*line, "--opts", "MODEL.DEVICE", "cpu"]) == 0
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_range": [0, 1]}  # of resnet18
    x = torch.from_numpy(smp.encoders.preprocess_input(image, input_space="RGB", **imagenet))
    with torch.no_grad():
        want = peer(x.permute(2, 0, 1)[None].float())[0].argmax(0)
    (tmp_path / "out" / "config.yaml").unlink()  # the weights carry their config
    got = Predictor(tmp_path / "out" / "model.safetensors")(tmp_path / "image.png")["sem_seg"].argmax(0)
    assert (got == want).float().mean() > 0.9999 and len(want.unique()) >= 2
