"""The part of a detectron2 model that runs without data: on the meta device, or on one channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from torch import Tensor, nn

from seg_ext.errors import UserError

FULL_SIZE = ("sem_seg", "centre", "offset")  # maps that the model gives at the image's size


class Network(nn.Module):
    """A detectron2 model without what depends on values: the proposals' selection, pooling and post-processing.

    The heads on regions run on maps of zeros, as many as the config allows. Modules keep the names they have in the
    model.
    """

    backbone: Any
    sem_seg_head: Any
    proposal_generator: Any
    roi_heads: Any
    ins_embed_head: Any

    def __init__(self, model: nn.Module) -> None:
        """Take over the parts of ``model``.

        Raises:
            UserError: a model without a backbone.
        """
        super().__init__()
        if not hasattr(model, "backbone"):
            raise UserError(f"MODEL.META_ARCHITECTURE {type(model).__name__}: has no backbone to analyze")
        for name in ("backbone", "sem_seg_head", "proposal_generator", "roi_heads", "ins_embed_head"):
            setattr(self, name, getattr(model, name, None))
        self.left_out = [name for name, _ in model.named_children() if not hasattr(self, name)]
        if self.roi_heads is not None and not self._knows_regions:
            self.left_out += ["proposal_generator", "roi_heads"]
        self.train(model.training)

    @property
    def _knows_regions(self) -> bool:
        return isinstance(self.roi_heads, (StandardROIHeads, Res5ROIHeads)) and isinstance(self.proposal_generator, RPN)

    @property
    def regions(self) -> tuple[int, int]:
        """How many region proposals of an image are counted, and how many masks, or sets of keypoints."""
        if not self._knows_regions:
            return 0, 0
        found = bool(_finders(self.roi_heads))
        if self.training:
            boxes = self.roi_heads.batch_size_per_image
            return boxes, int(boxes * self.roi_heads.positive_fraction) * found
        last = _stages(self.roi_heads.box_predictor)[-1]
        return self.proposal_generator.post_nms_topk[False], last.test_topk_per_image * found

    def padded(self, size: Sequence[int]) -> tuple[int, int]:
        """The size to which the model pads an image of this size."""
        step = max(self.backbone.size_divisibility, 1)
        return -(-size[0] // step) * step, -(-size[1] // step) * step

    def maps(self, image: Tensor) -> dict[str, Tensor]:
        """The backbone's maps, "logits" of the decoder, and those of :data:`FULL_SIZE`, from an image (N, C, H, W)."""
        maps = dict(self.backbone(image))
        features = dict(maps)
        maps.pop("image", None)
        if self.sem_seg_head is not None:
            decoder = getattr(self.sem_seg_head, "decoder", None)
            if isinstance(decoder, nn.Module):
                hook = decoder.register_forward_hook(lambda module, args, out: maps.update(logits=out["logits"]))
            try:
                maps["sem_seg"] = self.sem_seg_head(features)[0]
            finally:
                if isinstance(decoder, nn.Module):
                    hook.remove()
        if self.ins_embed_head is not None:
            maps["centre"], maps["offset"] = self.ins_embed_head(features, image.shape[2:])
        return maps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All that is computed from an image (N, C, H, W), in evaluation."""
        maps = self.maps(image)
        return (*maps.values(), *self._of_regions(maps, len(image)))

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        """A scalar whose gradient reaches every parameter, in training; the instance heads' is their plain sum."""
        features = self.backbone(image)
        targets: Any = target
        if getattr(self.sem_seg_head, "needs_weights", False):
            targets = {"sem_seg": target, "weight": torch.ones_like(target, dtype=image.dtype)}
        losses = [] if self.sem_seg_head is None else list(self.sem_seg_head(features, targets)[1].values())
        losses += [x.sum() for x in self._of_regions(features, len(image))]
        if self.ins_embed_head is not None:
            losses += [x.sum() for x in self.ins_embed_head(features, image.shape[2:])]
        return torch.stack(losses).sum()

    def _of_regions(self, features: Mapping[str, Tensor], images: int) -> Iterator[Tensor]:
        boxes, masks = self.regions
        if not boxes:
            return
        rpn, heads = self.proposal_generator, self.roi_heads
        for outputs in rpn.rpn_head([features[name] for name in rpn.in_features]):
            yield from outputs

        def pooled(number: int, names: Sequence[str], pooler: Any) -> Tensor:
            like = features[names[0]]
            return like.new_zeros(images * number, like.shape[1], *pooler.output_size)

        if isinstance(heads, Res5ROIHeads):
            x = heads.res5(pooled(boxes, heads.in_features, heads.pooler))
            yield from heads.box_predictor(x.mean((2, 3)))
            if masks and not self.training:  # what is found runs through res5 again
                x = heads.res5(pooled(masks, heads.in_features, heads.pooler))
            if masks:
                yield heads.mask_head.layers(x[: images * masks])
            return
        x = pooled(boxes, heads.box_in_features, heads.box_pooler)
        for head, predictor in zip(_stages(heads.box_head), _stages(heads.box_predictor), strict=True):
            yield from predictor(head(x))
        for kind in _finders(heads) if masks else ():
            x = pooled(masks, getattr(heads, f"{kind}_in_features"), getattr(heads, f"{kind}_pooler"))
            yield getattr(heads, f"{kind}_head").layers(x)


def _finders(heads: Any) -> list[str]:
    """What the heads find in a box."""
    return [kind for kind in ("mask", "keypoint") if getattr(heads, f"{kind}_on", False)]


def _stages(module: nn.Module) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]
