"""U-Net++ pruned: parameters, exact outputs, and a checkpoint of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import seg_ext.modeling  # noqa: F401
from seg_ext import Predictor
from seg_ext.cli.main import main
from seg_ext.cli.serve import build_service
from seg_ext.config import load_config
from seg_ext.engine.class_weights import resolve_class_weights
from seg_ext.engine.predictor import find_config
from seg_ext.engine.predictors import build_predictor
from seg_ext.engine.prune import prune
from seg_ext.errors import UserError
from seg_ext.serve.service import Limits

PAPER = {"L1": 101_537, "L2": 511_681, "L3": 2_205_537, "L4": 9_042_177}


def build(*opts: Any) -> tuple[CfgNode, nn.Module]:
    cfg = load_config("dsb2018/unetpp_deepsup.yaml", ["MODEL.DEVICE", "cpu", *map(str, opts)])
    torch.manual_seed(0)
    return cfg, build_model(cfg).eval()


@pytest.fixture(scope="module")
def small() -> tuple[CfgNode, nn.Module]:
    """A network of an eighth of the paper's width."""
    return build("MODEL.UNET.WIDTH", 4)


def inputs(size: tuple[int, int] = (32, 48)) -> list[dict[str, Any]]:
    return [{"image": 255 * torch.rand(3, *size, generator=torch.Generator().manual_seed(0))}]


def test_the_parts_of_the_papers_network_have_its_parameters() -> None:
    with torch.device("meta"):
        cfg, model = build("MODEL.DEVICE", "meta")
        found = {level: sum(x.numel() for x in prune(cfg, model, level)[1].parameters()) for level in PAPER}
    assert found == PAPER


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_part_scores_exactly_as_that_classifier_of_the_whole(small: tuple[CfgNode, nn.Module], level: int) -> None:
    cfg, model = small
    config, part = prune(cfg, model, f"L{level}")
    decoder: Any = model.sem_seg_head.decoder
    with torch.no_grad():
        decoder.inference = level
        want = model(inputs())[0]["sem_seg"]
        decoder.inference = None
        found = part(inputs())[0]["sem_seg"]
        assert torch.equal(found, want)
        assert level == 4 or not torch.equal(found, model(inputs())[0]["sem_seg"])
    assert not {f"level{i}" for i in range(level + 2, 6)} & {name.split(".")[3] for name in part.state_dict()}
    assert set(build_model(config).state_dict()) == set(part.state_dict())


def test_widths_of_the_deepest_nodes_are_those_of_the_whole_alone() -> None:
    cfg, model = build("MODEL.UNET.WIDTH", 4, "MODEL.SEM_SEG_HEAD.DECODER.ARGS.channels", [9, 8, 7, 6])
    with torch.no_grad():
        for level in (2, 4):
            _, part = prune(cfg, model, f"L{level}")
            model.sem_seg_head.decoder.inference = level  # type: ignore[union-attr]
            assert torch.equal(part(inputs())[0]["sem_seg"], model(inputs())[0]["sem_seg"])


def test_a_config_of_another_network_is_refused(small: tuple[CfgNode, nn.Module]) -> None:
    cfg = small[0].clone()
    cfg.MODEL.UNET.WIDTH = 5
    with pytest.raises(UserError, match="the model is not that of its config"):
        prune(cfg, small[1], "L2")


def test_weights_are_shared_and_generators_left_as_they_were(small: tuple[CfgNode, nn.Module]) -> None:
    cfg, model = small
    state = torch.get_rng_state()
    _, part = prune(cfg, model, "L2")
    assert torch.equal(state, torch.get_rng_state())
    whole = dict(model.named_parameters())
    assert all(x.data_ptr() == whole[name].data_ptr() for name, x in part.named_parameters())


def test_the_predictor_of_test_prune_is_the_part(small: tuple[CfgNode, nn.Module]) -> None:
    cfg, model = small
    cfg = cfg.clone()
    cfg.TEST.PRUNE = "L2"
    predict: Any = build_predictor(cfg, model)
    with torch.no_grad():
        assert torch.equal(predict(inputs())[0]["sem_seg"], prune(cfg, model, "L2")[1](inputs())[0]["sem_seg"])
    assert sum(x.numel() for x in predict.parameters()) < sum(x.numel() for x in model.parameters()) / 10
    cfg.TEST.PRUNE = ""
    assert build_predictor(cfg, model) is model


def test_a_network_on_a_resnet_loses_the_stages_that_nothing_reads() -> None:
    cfg = load_config("dsb2018/panoptic_unetpp_R_18.yaml", ["MODEL.DEVICE", "cpu"])
    with torch.device("meta"):
        cfg.MODEL.DEVICE = "meta"
        assert "backbone.bottom_up.res5.0.conv1.weight" in _keys(cfg, "L1")  # the region heads read it
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = cfg.MODEL.ROI_HEADS.NAME = ""
        cfg.MODEL.BACKBONE.NAME = "build_seg_ext_resnet_backbone"
        keys = _keys(cfg, "L1")
    assert not [key for key in keys if ".res4" in key or ".res5" in key]


def _keys(cfg: CfgNode, level: str) -> list[str]:
    return list(prune(cfg, build_model(cfg), level)[1].state_dict())


@pytest.mark.parametrize(
    ("opts", "level", "message"),
    [
        ((), "L5", "TEST.PRUNE 'L5': takes L1, L2, L3, L4 of this model"),
        ((), "2", "TEST.PRUNE '2': takes L1, L2, L3, L4 of this model"),
        (("MODEL.SEM_SEG_HEAD.DECODER.ARGS.deep_supervision", False), "L2", "takes L4 of this model, or '' for the"),
        (
            ("MODEL.SEM_SEG_HEAD.DECODER.NAME", "unet"),
            "L1",
            "takes a model with MODEL.SEM_SEG_HEAD.DECODER.NAME unetpp",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(opts: tuple[Any, ...], level: str, message: str) -> None:
    extra = ["MODEL.UNET.WIDTH", "4", "MODEL.DEVICE", "meta", *map(str, opts)]
    cfg = load_config("dsb2018/unetpp_deepsup.yaml", extra)
    if "unet" in opts:
        cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.clear()
    with torch.device("meta"):
        model = build_model(cfg)
        with pytest.raises(UserError) as error:
            prune(cfg, model, level)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def trained(tmp_path: Path, toy_config: Path) -> Callable[..., Path]:
    """A run folder with weights of a small U-Net++ and its config, on the toy data."""
    toy = yaml.safe_load(toy_config.read_text())
    levels = [f"level{i}" for i in range(1, 4)]
    toy["MODEL"]["BACKBONE"] = {"NAME": "build_seg_ext_unet_backbone", "FREEZE_AT": 0}
    toy["MODEL"]["UNET"] = {"WIDTH": 4, "DEPTH": 3, "NORM": "BN", "OUT_FEATURES": levels}
    decoder = {"NAME": "unetpp", "ARGS": {"channels": [6, 7]}}
    losses = [{"NAME": "cross_entropy", "class_weights": "median_frequency"}]
    toy["MODEL"]["SEM_SEG_HEAD"] |= {"IN_FEATURES": levels, "NORM": "BN", "DECODER": decoder, "LOSSES": losses}
    run = tmp_path / "whole"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(toy))
    cfg = load_config(run / "config.yaml")
    resolve_class_weights(cfg, training=False)
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.01, 2)
    torch.save({"model": model.state_dict()}, run / "model_final.pth")
    return run


def test_the_command_writes_weights_and_config_that_predict_alike(
    trained: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = str(trained / "model_final.pth"), tmp_path / "part"
    assert main(["prune", "--weights", weights, "--level", "L1", "--output", str(out)]) == 0
    assert "of" in (line := capsys.readouterr().out) and str(out / "model_final.pth") in line
    [loss] = load_config(out / "config.yaml").MODEL.SEM_SEG_HEAD.LOSSES
    assert loss["class_weights"] == "median_frequency"  # for the part's own training
    part = Predictor(str(out / "model_final.pth"), opts=["MODEL.DEVICE", "cpu"], backend="eager")
    whole = Predictor(weights, opts=["MODEL.DEVICE", "cpu", "TEST.PRUNE", "L1"])
    found, want = (predictor(toy_folder / "images" / "0.png")["sem_seg"] for predictor in (part, whole))
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    assert not [name for name in whole.model.state_dict() if "level3" in name or "x11" in name or "x02" in name]
    assert main(["prune", "--weights", weights, "--level", "L1", "--output", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["prune", "--weights", weights, "--level", "L3", "--output", str(tmp_path / "c")]) == 2
    assert "takes L1, L2 of this model" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_weights_that_lack_a_part_of_the_model_are_not_cut(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "model_final.pth", weights_only=True)
    kept = {key: value for key, value in content["model"].items() if not key.startswith("sem_seg_head.decoder.heads")}
    torch.save({"model": kept}, trained / "model_final.pth")
    arguments = ["--weights", str(trained / "model_final.pth"), "--level", "L1", "--output", str(tmp_path / "part")]
    assert main(["prune", *arguments]) == 2
    assert "tensors of the model are not in it" in capsys.readouterr().err and not (tmp_path / "part").exists()


def test_code_that_a_config_beside_the_weights_names_is_not_imported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = yaml.safe_load((trained / "config.yaml").read_text())
    beside["MODEL"]["SEM_SEG_HEAD"]["DECODER"] = {"NAME": "elsewhere:Decoder"}
    (trained / "config.yaml").write_text(yaml.safe_dump(beside))
    arguments = ["--weights", str(trained / "model_final.pth"), "--level", "L1", "--output", str(tmp_path / "part")]
    assert main(["prune", *arguments]) == 2
    assert "DECODER.NAME elsewhere:Decoder is foreign code; name the file by" in capsys.readouterr().err


def test_the_mirror_image_of_a_part_that_is_served_goes_through_the_part(trained: Path, toy_folder: Path) -> None:
    opts = ["MODEL.DEVICE", "cpu", "TEST.PRUNE", "L1"]
    service = build_service(find_config(trained / "model_final.pth", opts=opts), Limits())
    found = service.segment((toy_folder / "images" / "0.png").read_bytes(), tta=True)
    assert service.tasks == ("semantic",) and found.scene.semantic.shape == (48, 40)
