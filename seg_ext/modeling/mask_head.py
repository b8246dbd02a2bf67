"""Mask R-CNN's mask head (He et al., 2017) that computes in training what its loss looks at: the true class's mask."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor


@ROI_MASK_HEAD_REGISTRY.register()
class TrueClassMaskHead(MaskRCNNConvUpsampleHead):
    """detectron2's head in all but speed: parameters, losses, gradients and inference are those of its parent.

    In training the 2x2 deconvolution, whose windows do not overlap, is a matrix product over cells, and each region's
    last layer is one inner product a pixel in place of one for each of the K classes.
    """

    deconv: Any
    predictor: Any

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """The loss in training, else instances with masks.

        Args:
            x: (n, C, h, w) of the regions of all images, in training those with an instance.
            instances: of each image; in training with "gt_classes", "gt_masks" and "proposal_boxes".
        """
        if not self.training:
            return super().forward(x, instances)
        classes = torch.cat([found.gt_classes for found in instances]).long()
        loss = mask_rcnn_loss(self.true_logits(x, classes), instances, self.vis_period)
        return {"loss_mask": loss * self.loss_weight}

    def true_logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """(n, C, h, w) and the class of each region (n,) -> its class's logits (n, 1, 2h, 2w)."""
        for layer in self.conv_norm_relus:
            x = layer(x)
        number, channels, height, width = x.shape
        width_out = self.deconv.out_channels
        weight = self.deconv.weight.permute(0, 2, 3, 1).reshape(channels, 4 * width_out)
        bias = self.deconv.bias.repeat(4)
        cells = x.flatten(2).transpose(1, 2).reshape(-1, channels)
        hidden = torch.addmm(bias, cells, weight).relu_().view(number, 4 * height * width, width_out)
        if self.predictor.out_channels == 1:
            classes = torch.zeros_like(classes)
        chosen = self.predictor.weight[classes].flatten(1)
        logits = torch.baddbmm(self.predictor.bias[classes][:, None, None], hidden, chosen[..., None])
        logits = logits.view(number, height, width, 2, 2).permute(0, 1, 3, 2, 4)
        return logits.reshape(number, 1, 2 * height, 2 * width)
