"""The stack of predictors: what TEST asks for around a model, in a fixed order, and panoptic fusion once at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from seg_ext.inference.contract import UNFUSED, Predict
from seg_ext.inference.mc_dropout import McDropout
from seg_ext.inference.refine import Refine, Refiner
from seg_ext.inference.sliding_window import SlidingWindow
from seg_ext.inference.tta import ScalesAndFlips
from seg_ext.postprocess import fuse_panoptic


def stack_predictors(model: nn.Module, keys: Mapping[str, Any], *, num_classes: int = 2) -> Predict:
    """Wrap a model, innermost first: dropout samples, sliding windows, scales and flips, refinement, panoptic fusion.

    Args:
        model: in detectron2's format; in eval mode when the stack is called.
        keys: TEST of the config.
        num_classes: K of ``sem_seg``, for refinement.

    Returns:
        The model itself where no wrapper is asked for.

    Raises:
        UserError: a value that no wrapper takes.
    """
    predict: Predict = model
    window, tta, dropout = keys["SLIDING_WINDOW"], keys["TTA"], keys["MC_DROPOUT"]
    if dropout["SAMPLES"]:
        predict = McDropout(model, dropout["SAMPLES"], batch=dropout["BATCH"], seed=dropout["SEED"])
    if window["SIZE"]:
        predict = SlidingWindow(
            predict, window["SIZE"], overlap=window["OVERLAP"], blend=window["BLEND"], batch=window["BATCH"]
        )
    if tta["SCALES"] or tta["FLIP"]:
        predict = ScalesAndFlips(
            predict, tta["SCALES"], flip=tta["FLIP"], nms=tta["NMS"], most=keys["DETECTIONS_PER_IMAGE"]
        )
    if keys["REFINE"]:
        predict = Refine(predict, Refiner(keys["REFINE"], num_classes=num_classes))
    return model if predict is model else Finish(predict, model)


class Finish:
    """Asks a stack for what the heads give, and makes panoptic segments of it as the model would have."""

    def __init__(self, predict: Predict, model: nn.Module) -> None:
        """Hold both.

        Args:
            predict: wraps the model.
            model: its ``finish(output)`` fuses; of one without, detectron2's PanopticFPN, the thresholds are used.
        """
        self._predict, self._model = predict, model

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict a batch of images; of one whose ``fuse`` is False, such as a window, what the heads give."""
        outputs = self._predict([x | UNFUSED for x in batched_inputs])
        return [
            self._finish(output) if x.get("fuse", True) else output
            for x, output in zip(batched_inputs, outputs, strict=True)
        ]

    def _finish(self, output: dict[str, Any]) -> dict[str, Any]:
        model: Any = self._model
        if hasattr(model, "finish"):
            finished: dict[str, Any] = model.finish(output)
            return finished
        if not hasattr(model, "combine_overlap_thresh") or not {"sem_seg", "instances"} <= output.keys():
            return output
        labels, instances = output.get("sem_seg_labels"), output["instances"]
        segments = fuse_panoptic(
            output["sem_seg"].argmax(0) if labels is None else labels,
            instances.pred_masks,
            scores=instances.scores,
            classes=instances.pred_classes,
            thing_ids=(0,),  # detectron2's semantic class of all things
            overlap_threshold=model.combine_overlap_thresh,
            stuff_area=model.combine_stuff_area_thresh,
            score_threshold=model.combine_instances_score_thresh,
        )
        return output | {"panoptic_seg": segments}
