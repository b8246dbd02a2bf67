"""The predictor a config asks for: a model in the wrappers of TEST."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from seg_ext.engine.prune import prune
from seg_ext.errors import UserError
from seg_ext.inference.contract import Predict
from seg_ext.inference.stack import stack_predictors


def build_predictor(cfg: CfgNode, model: nn.Module) -> Predict:
    """Wrap ``model`` as TEST says, see :func:`seg_ext.inference.stack.stack_predictors`; itself where it says nothing.

    Raises:
        UserError: a key of TEST has a value that no wrapper takes, or one that this model cannot serve.
    """
    check_predictor(cfg)
    if cfg.TEST.PRUNE:
        _, model = prune(cfg, model, cfg.TEST.PRUNE)
    return stack_predictors(model, cfg.TEST, num_classes=max(2, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES))


def check_predictor(cfg: CfgNode) -> None:
    """Check the keys of TEST that say how images are predicted, before there is a model.

    Raises:
        UserError: a value that no wrapper takes, or keys that do not go together.
    """
    keys, name = cfg.TEST, cfg.MODEL.META_ARCHITECTURE
    if keys.TTA.FLIP and cfg.MODEL.KEYPOINT_ON:
        raise UserError(
            "TEST.TTA.FLIP does not go with MODEL.KEYPOINT_ON: left and right keypoints would change places"
        )
    if keys.LABELS_ONLY and name != "PanopticSegmentor":
        raise UserError(f"TEST.LABELS_ONLY is for MODEL.META_ARCHITECTURE PanopticSegmentor, not {name}")
    scored = [metric for metric in ("calibration", "uncertainty") if metric in keys.SEMANTIC_METRICS]
    if keys.LABELS_ONLY and scored:
        raise UserError(f"TEST.SEMANTIC_METRICS {scored[0]} needs scores, which TEST.LABELS_ONLY leaves out")
    classes = max(2, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    stack_predictors(nn.Identity(), {**keys, "MC_DROPOUT": {"SAMPLES": 0}}, num_classes=classes)
