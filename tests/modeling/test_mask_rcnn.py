"""Mask R-CNN's mask loss and RoIAlign against the paper (He et al., 2017) in plain NumPy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from seg_ext.config import load_config
from seg_ext.modeling.mask_head import TrueClassMaskHead

CFG = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml").MODEL


def proposals(classes: list[int], side: int) -> Instances:
    """Regions of whole images, each the left half of which belongs to its instance."""
    masks = torch.zeros(len(classes), side, side, dtype=torch.bool)
    masks[:, :, : side // 2] = True
    boxes = Boxes(torch.tensor([[0.0, 0.0, side, side]] * len(classes)))
    fields = {"proposal_boxes": boxes, "gt_classes": torch.tensor(classes), "gt_masks": BitMasks(masks)}
    return Instances((side, side), **fields)


def test_the_mask_loss_touches_the_channel_of_the_true_class_alone() -> None:
    torch.manual_seed(0)
    classes, number, side = [3, 0, 7], CFG.ROI_HEADS.NUM_CLASSES, 2 * CFG.ROI_MASK_HEAD.POOLER_RESOLUTION
    logits = torch.randn(len(classes), number, side, side, requires_grad=True)
    with EventStorage():
        loss = mask_rcnn_loss(logits, [proposals(classes, side)])
    loss.backward()
    chosen = torch.stack([logits[i, k] for i, k in enumerate(classes)])
    target = torch.zeros_like(chosen)
    target[:, :, : side // 2] = 1
    assert loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(chosen, target).item(), rel=1e-6)
    want = torch.zeros_like(logits)
    for i, k in enumerate(classes):
        want[i, k] = (torch.sigmoid(chosen[i]) - target[i]).detach() / target.numel()
    assert torch.allclose(logits.grad, want, atol=1e-9)
    assert logits.grad.ne(0).flatten(2).any(2).sum(1).tolist() == [1, 1, 1]  # exactly 0 in the other K - 1


@pytest.mark.parametrize(("number", "norm", "convs"), [(7, "", 2), (1, "GN", 1), (3, "", 0)])
@pytest.mark.parametrize("classes", [[2, 0, 1], []])
def test_a_head_that_computes_the_true_class_alone_has_its_parents_loss_and_gradients(
    number: int, norm: str, convs: int, classes: list[int]
) -> None:
    torch.manual_seed(0)
    shape, kind = ShapeSpec(channels=6, height=5, width=5), {"conv_dims": [8] * (convs + 1), "conv_norm": norm}
    if norm:
        kind["conv_dims"] = [32] * (convs + 1)
    head = TrueClassMaskHead(shape, num_classes=number, loss_weight=0.5, **kind)
    parent = MaskRCNNConvUpsampleHead(shape, num_classes=number, loss_weight=0.5, **kind)
    torch.nn.init.normal_(head.predictor.weight)
    torch.nn.init.normal_(head.predictor.bias)
    torch.nn.init.normal_(head.deconv.bias)
    parent.load_state_dict(head.state_dict())
    regions = proposals([k % number for k in classes], 10)
    inputs = torch.randn(len(classes), 6, 5, 5)
    found = []
    for one in (head, parent):
        x = inputs.clone().requires_grad_()
        with EventStorage() as storage:
            losses = one.train()(x, [regions, proposals([], 10)])
        losses["loss_mask"].backward()
        grads = {name: p.grad for name, p in one.named_parameters()}
        accuracy = {name: value for name, (value, _) in storage.latest().items()}
        found.append((losses, grads, x.grad, accuracy))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    if classes:
        assert found[0][2].abs().max() > 0 and found[0][3]
        boxes = {"pred_boxes": regions.proposal_boxes, "pred_classes": regions.gt_classes}
        masks = [one.eval()(inputs, [Instances((10, 10), **boxes)])[0].pred_masks for one in (head, parent)]
        assert torch.equal(*masks)


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Value of (H, W) at a point in cells, 0 more than a cell outside, constant beyond the outermost centres."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(math.floor(y), height - 2), min(math.floor(x), width - 2)
    wy, wx = y - top, x - left
    (a, b), (c, d) = plane[top : top + 2, left : left + 2]
    return (1 - wy) * ((1 - wx) * a + wx * b) + wy * ((1 - wx) * c + wx * d)


def aligned(plane: np.ndarray, box: list[float], scale: float, bins: int, samples: int) -> np.ndarray:
    """(bins, bins) means of samples x samples points a bin: nothing is rounded, cell centres lie half a cell in."""
    x0, y0, x1, y1 = (value * scale - 0.5 for value in box)
    out = np.zeros((bins, bins))
    for i, j, u, v in np.ndindex(bins, bins, samples, samples):
        y = y0 + (y1 - y0) / bins * (i + (u + 0.5) / samples)
        x = x0 + (x1 - x0) / bins * (j + (v + 0.5) / samples)
        out[i, j] += bilinear(plane, y, x) / samples**2
    return out


@pytest.mark.parametrize("stride", [4, 8])
def test_roi_align_with_four_samples_a_bin_is_plain_bilinear_sampling(stride: int) -> None:
    draw = np.random.default_rng(0)
    plane = draw.standard_normal((12, 14)).astype(np.float32)
    corners = draw.uniform(-6, 12 * stride + 4, (8, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1).astype(np.float32)
    pooler = ROIPooler(output_size=7, scales=(1 / stride,), sampling_ratio=2, pooler_type=CFG.ROI_MASK_HEAD.POOLER_TYPE)
    got = pooler([torch.from_numpy(plane)[None, None]], [Boxes(torch.from_numpy(boxes))])
    want = np.stack([aligned(plane, box.tolist(), 1 / stride, 7, 2) for box in boxes])
    assert np.abs(got[:, 0].numpy() - want).max() < 1e-4


def test_the_shipped_heads_align() -> None:
    assert CFG.ROI_BOX_HEAD.POOLER_TYPE == CFG.ROI_MASK_HEAD.POOLER_TYPE == "ROIAlignV2"
