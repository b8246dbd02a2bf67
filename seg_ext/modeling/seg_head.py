"""SegHead: the one adapter that turns a plain decoder into a detectron2 semantic head."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from seg_ext.decoders import DECODERS
from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec, resize_to
from seg_ext.losses import IMAGE_LOSSES, LOSSES
from seg_ext.modeling.arguments import check_types
from seg_ext.modeling.norm import norm_layer
from seg_ext.modeling.regions import check_given

_HEAD = "MODEL.SEM_SEG_HEAD"
WeightedLoss = tuple[str, float, Callable[..., Tensor]]


@SEM_SEG_HEADS_REGISTRY.register()
class SegHead(nn.Module):
    """Features by name in; losses out in training, (N, K, H, W) scores at the input's size in inference.

    Works in detectron2's ``SemanticSegmentor`` and ``PanopticFPN`` and in ``PanopticSegmentor``. A backbone that
    returns ``image`` (ours do) gives the exact output size; with another one it is the logits' size times the
    decoder's stride, at most a cell more than the image, which detectron2's models cut away.
    """

    @configurable
    def __init__(
        self,
        decoder: nn.Module,
        in_features: Sequence[str],
        *,
        losses: Sequence[WeightedLoss],
        ignore_value: int = 255,
        aux_weight: float = 0.4,
        loss_weight: float = 1.0,
        align_corners: bool = False,
    ) -> None:
        """Hold a decoder and what it is trained with.

        Args:
            decoder: see :mod:`seg_ext.decoders`.
            in_features: names of the feature maps handed to the decoder.
            losses: (name, weight, function) triples, see :meth:`losses`.
            ignore_value: target id that counts for nothing.
            aux_weight: factor on the losses of the auxiliary outputs.
            loss_weight: factor on all losses.
            align_corners: of the resizing of scores to the image's size.
        """
        super().__init__()
        self.decoder = decoder
        self.in_features = tuple(in_features)
        self.ignore_value = ignore_value
        self._losses = tuple(losses)
        self._aux_weight = aux_weight
        self._loss_weight = loss_weight
        self._align_corners = align_corners
        self.needs_weights = _weighted(losses)  # among the targets, see losses()

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor from MODEL.SEM_SEG_HEAD and the backbone's ``output_shape()``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        for key in ("AUX_WEIGHT", "LOSS_WEIGHT"):
            if not 0 <= head[key] < math.inf:
                raise UserError(f"{_HEAD}.{key} {head[key]}: takes a number >= 0")
        decoder = build_decoder(
            head.DECODER.NAME,
            select_features(input_shape, head.IN_FEATURES),
            head.NUM_CLASSES,
            norm=norm_layer(head.NORM),
            args=dict(head.DECODER.ARGS),
        )
        losses = build_losses(head.LOSSES, head.NUM_CLASSES)
        _check_image_losses([name for name, _, _ in losses], head.DECODER.NAME, getattr(decoder, "image_outputs", ()))
        if _weighted(losses) and not has_target(cfg.INPUT.TARGETS, "border_weight"):
            raise UserError(f"{_HEAD}.LOSSES border_weighted_cross_entropy: needs border_weight in INPUT.TARGETS")
        return {
            "decoder": decoder,
            "in_features": head.IN_FEATURES,
            "losses": losses,
            "ignore_value": head.IGNORE_VALUE,
            "aux_weight": head.AUX_WEIGHT,
            "loss_weight": head.LOSS_WEIGHT,
            "align_corners": head.ALIGN_CORNERS,
        }

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """detectron2's protocol.

        Args:
            features: maps by name, the backbone's.
            targets: in training, as :meth:`losses` takes them.

        Returns:
            ``(None, losses)`` in training, ``(scores (N, K, H, W), {})`` in inference; K >= 2, the softmax of the
            scores being the probability (a one-channel decoder's z leaves as [0, z]).
        """
        outputs = self._decode(features)
        if self.training:
            if targets is None:
                raise UserError("semantic training needs 'sem_seg' in the inputs; does the data set have label maps?")
            return None, self.losses(outputs, targets)
        scores = self._to_size(outputs["logits"], self._size(outputs["logits"], features))
        return _two_channels(scores), {}

    def unresized(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[int, int], bool]:
        """The scores of inference, (N, K, h, w), before they are resized to what :meth:`forward` gives.

        Returns:
            These, the size (H, W) to resize them to, and the ``align_corners`` of it.
        """
        logits = self._decode(features)["logits"]
        size = self._size(logits, features)
        if self._shift is not None:
            logits = self._to_size(logits, size)
        return _two_channels(logits), size, self._align_corners

    def _decode(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            outputs: dict[str, Tensor] = self.decoder({name: features[name] for name in self.in_features})
        except ValueError as error:  # a decoder's own refusal, such as BatchNorm on a single value
            raise UserError(f"{_HEAD}: {error}") from error
        return outputs

    def _size(self, logits: Tensor, features: Mapping[str, Tensor]) -> tuple[int, int]:
        """Height and width of the padded images."""
        decoder: Any = self.decoder
        if "image" in features:
            height, width = features["image"].shape[-2:]
        else:
            height, width = (side * decoder.out_stride for side in logits.shape[-2:])
        return height, width

    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every configured loss of every output it is for, weighted.

        Args:
            outputs: the decoder's: (N, K, h, w) scores, of which those beside "logits" count AUX_WEIGHT, and
                image-level "image_*", which go to the losses of IMAGE_LOSSES alone.
            targets: (N, H, W) ids, or these as "sem_seg" beside further targets by name, of which "weight", (N, H, W),
                goes to the losses that declare it. Where the logits lie inside the image, so that they cover less of
                it, they are compared with the part they cover.

        Raises:
            UserError: an output without a loss, or a loss that lacks its weights.
        """
        named = dict(targets) if isinstance(targets, Mapping) else {"sem_seg": targets}
        inset = -min(self._shift or 0, 0)
        if inset:
            height, width = outputs["logits"].shape[-2:]
            named = {key: x[..., inset : inset + height, inset : inset + width] for key, x in named.items()}
        target = named["sem_seg"]
        losses = {}
        for output, x in outputs.items():
            of_image = output.startswith("image_")
            matching = [entry for entry in self._losses if (entry[0] in IMAGE_LOSSES) == of_image]
            if not matching:
                raise UserError(_without_loss(output))
            if not of_image and not inset:
                x = self._to_size(x, target.shape[-2:])
            scale = self._loss_weight * (1.0 if output == "logits" or of_image else self._aux_weight)
            for name, weight, function in matching:
                key = "loss_sem_seg" + (f"_{name}" if len(self._losses) > 1 else "")
                key += "" if output == "logits" else f"_{output}"
                extra = {"weight": named["weight"]} if "weight" in named and _takes_weight(function) else {}
                try:
                    losses[key] = scale * weight * function(x, target, ignore=self.ignore_value, **extra)
                except ValueError as error:
                    raise UserError(f"{_HEAD}.LOSSES {name}: {error}") from error
        return losses

    @property
    def _shift(self) -> int | None:
        """Where the image's first pixel lies in logits of stride 1; None for logits that are the image resized."""
        return getattr(self.decoder, "out_offset", None) if self.decoder.out_stride == 1 else None

    def _to_size(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """(N, K, h, w) to (N, K, *size): cut the image out of logits of stride 1 that have a shift, resize others.

        Where a backbone that rounds sizes down leaves the logits short of the image, the last row or column goes on.
        """
        if self._shift is None:
            return resize_to(logits, size, align_corners=self._align_corners)
        if self._shift < 0:
            raise UserError(f"{_HEAD}: the logits cover only the middle of the image; mirror its border (UNET.MIRROR)")
        logits = logits[..., self._shift : self._shift + size[0], self._shift : self._shift + size[1]]
        bottom, right = (side - have for side, have in zip(size, logits.shape[-2:], strict=True))
        return F.pad(logits, (0, right, 0, bottom), mode="replicate") if bottom or right else logits


def _two_channels(scores: Tensor) -> Tensor:
    """Scores whose softmax is the probability: z of one channel as [0, z]."""
    return torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores


def has_target(entries: Sequence[Any], name: str) -> bool:
    """Whether INPUT.TARGETS has an entry of this NAME."""
    return any(isinstance(entry, Mapping) and entry.get("NAME") == name for entry in entries)


def select_features(
    shapes: Mapping[str, Any], names: Sequence[str], *, key: str = f"{_HEAD}.IN_FEATURES"
) -> dict[str, FeatureSpec]:
    """The named maps of a backbone, shallow to deep (of equal strides in the backbone's order).

    Raises:
        UserError: a name the backbone does not give.
    """
    check_given(key, names, shapes)
    order = [name for name in shapes if name in names]
    specs = {n: FeatureSpec(shapes[n].channels, shapes[n].stride, getattr(shapes[n], "offset", 0)) for n in order}
    return dict(sorted(specs.items(), key=lambda item: item[1].stride))


def build_decoder(
    name: str,
    in_features: dict[str, FeatureSpec],
    num_classes: int,
    *,
    norm: Callable[[int], nn.Module] | None,
    args: Mapping[str, Any],
) -> nn.Module:
    """Construct a decoder by its name in DECODERS or as ``package.module:Class``.

    Raises:
        UserError: an unknown name, something that is no module class, an argument the decoder does not take or refuses.
    """
    decoder_class = find_decoder(name)
    where = f"{_HEAD}.DECODER.ARGS of {name}"
    check_arguments(where, decoder_class.__init__, args, {"in_features", "num_classes"})
    check_types(where, decoder_class.__init__, args)
    try:
        return decoder_class(in_features, num_classes, norm=norm, **args)
    except (ValueError, TypeError) as error:
        raise UserError(f"{_HEAD}.DECODER {name}: {error}") from error


def find_decoder(name: str) -> type[nn.Module]:
    """The decoder class behind a config name."""
    if name in DECODERS:
        return DECODERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, DECODERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{_HEAD}.DECODER.NAME {name!r}: takes {', '.join(DECODERS)} or package.module:Class{hint}")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # ":Class", ".module:Class"
        raise UserError(f"{_HEAD}.DECODER.NAME {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{_HEAD}.DECODER.NAME {name!r}: takes a torch.nn.Module subclass")
    return found


def build_losses(entries: Sequence[Mapping[str, Any]], num_classes: int) -> list[WeightedLoss]:
    """(name, weight, function) of every entry ``{NAME, WEIGHT, arguments}`` of a LOSSES list, each called once.

    Raises:
        UserError: an unknown loss or one that is there twice, an argument it does not take or refuses for as many
            classes, a weight that is no number >= 0.
    """
    losses: list[WeightedLoss] = []
    known = {**LOSSES, **IMAGE_LOSSES}
    for entry in entries:
        name = str(entry.get("NAME")) if isinstance(entry, Mapping) else ""
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{_HEAD}.LOSSES {entry!r}: NAME takes one of {', '.join(known)}{hint}")
        if any(name == other for other, _, _ in losses):
            raise UserError(f"{_HEAD}.LOSSES has {name} twice; takes each loss once")
        weight = entry.get("WEIGHT", 1.0)
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < math.inf:
            raise UserError(f"{_HEAD}.LOSSES {name}: WEIGHT {weight!r} takes a number >= 0")
        args = {key: value for key, value in entry.items() if key not in ("NAME", "WEIGHT")}
        check_arguments(f"{_HEAD}.LOSSES {name}", known[name], args, {"logits", "target", "ignore", "weight"})
        function = partial(known[name], **args)
        _try(name, function, num_classes)
        losses.append((name, float(weight), function))
    if all(name in IMAGE_LOSSES for name, _, _ in losses):
        raise UserError(f"{_HEAD}.LOSSES has none for the label map: takes at least one of {', '.join(LOSSES)}")
    return losses


def _weighted(losses: Sequence[WeightedLoss]) -> bool:
    """Whether one of the losses cannot do without weights of the pixels."""
    return any(name == "border_weighted_cross_entropy" for name, _, _ in losses)


def _check_image_losses(losses: Sequence[str], decoder: str, outputs: Sequence[str]) -> None:
    """Refuse a loss of image-level outputs where the decoder has none, and such outputs without a loss."""
    of_image = [name for name in losses if name in IMAGE_LOSSES]
    if of_image and not outputs:
        raise UserError(
            f"{_HEAD}.LOSSES {of_image[0]}: takes a decoder with an image-level output (unet3p with cgm True), not "
            f"{decoder} as it is"
        )
    if outputs and not of_image:
        raise UserError(_without_loss(outputs[0]))


def _without_loss(output: str) -> str:
    known = ", ".join(IMAGE_LOSSES if output.startswith("image_") else LOSSES)
    return f"{_HEAD}.LOSSES has none for the decoder's output {output!r}: add one of {known}"


def _try(name: str, function: Callable[..., Tensor], num_classes: int) -> None:
    """Call a loss on a few zeros, so that it refuses its arguments before the training."""
    shape = (1, 2, 1, 1) if name in IMAGE_LOSSES else (1, num_classes, 2, 2)
    extra = {"weight": torch.ones(1, 2, 2, device="cpu")} if _takes_weight(function) else {}
    target = torch.zeros(1, 2, 2, dtype=torch.long, device="cpu")
    try:
        function(torch.zeros(shape, device="cpu"), target, ignore=255, **extra)
    except (ValueError, TypeError) as error:
        raise UserError(f"{_HEAD}.LOSSES {name}: {error}") from error


def _takes_weight(function: Callable[..., Any]) -> bool:
    return "weight" in inspect.signature(function).parameters


def check_arguments(where: str, function: Callable[..., Any], args: Mapping[str, Any], reserved: set[str]) -> None:
    """Refuse a keyword that ``function`` does not take, naming those it does."""
    known = [name for name in inspect.signature(function).parameters if name not in {"self", "norm"} | reserved]
    unknown = [str(name) for name in args if name not in known]
    if unknown:
        raise UserError(f"{where}: unknown argument {', '.join(unknown)}; takes {', '.join(known) or 'none'}")
