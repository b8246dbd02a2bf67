"""timm's networks as backbones: names, features, preprocessing."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from seg_ext.checkpoint import Checkpointer
from seg_ext.encoders import TimmEncoder

logging.getLogger("timm").setLevel(logging.ERROR)


@torch.no_grad()
def test_features_are_the_peers(kit: SimpleNamespace) -> None:
    peer = kit.used(timm.create_model("resnet18"))
    ours = kit.build("timm", peer.state_dict(), arch="resnet18.a1_in1k")
    assert ours.imported.left_out == ["fc.weight", "fc.bias"] and ours.imported.fresh == ("sem_seg_head.",)
    for image in kit.images((32, 32), (64, 32)):
        kit.assert_equal(
            ours.model.backbone(kit.normalized(image))["stage5"], peer.forward_features(kit.normalized(image))
        )


@pytest.mark.parametrize("arch", ["convnext_atto", "mobilenetv3_small_050", "efficientnet_b0"])
def test_stages_find_their_place_under_timms_own_preprocessing(kit: SimpleNamespace, arch: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch).state_dict()
    imported, cfg = kit.place("timm", state, config={"architecture": arch})  # as config.json beside the weights says it
    assert all(key.startswith(("head.", "classifier.", "conv_head.", "bn2.", "norm_pre.")) for key in imported.left_out)
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * x for x in timm.get_pretrained_cfg(arch).mean])


def test_a_name_is_needed_and_has_to_fit(kit: SimpleNamespace) -> None:
    state = {"conv1.weight": torch.zeros(1)}
    for arch, text in (
        ("", "give --arch NAME"),
        ("resnet18", "not the weights of timm's resnet18"),
        ("resnet188", "did"),
        ("resnet18.nope", "timm has no resnet18.nope"),
    ):
        with pytest.raises(ValueError, match=text):
            kit.place("timm", state, arch=arch)


def test_a_classifiers_file_fills_a_timm_backbone(tmp_path: Path) -> None:
    peer, model = timm.create_model("mobilenetv3_small_050"), torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.encoder = TimmEncoder(name="mobilenetv3_small_050")
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    checkpointer = Checkpointer(model)
    checkpointer.load(str(tmp_path / "w.pth"))
    assert checkpointer.report.clean and torch.equal(
        model.backbone.encoder.model.conv_stem.weight, peer.conv_stem.weight
    )
