"""Predictor: a config and its weights as a function of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from torch import nn

from seg_ext.checkpoint import Checkpointer
from seg_ext.data.mapper import SegMapper
from seg_ext.errors import UserError


class Predictor:
    """``Predictor(cfg)("street.jpg")`` gives the model's output for the image, at the image's size.

    Attributes:
        model: in eval mode, on MODEL.DEVICE.
        metadata: class names and colours of the data set the config names.
    """

    @configurable
    def __init__(self, model: nn.Module, *, mapper: SegMapper, metadata: Metadata, weights: str) -> None:
        """Load ``weights`` into ``model``.

        Args:
            model: detectron2's input and output format.
            mapper: for test images.
            metadata: class names and colours.
            weights: file or URL.

        Raises:
            UserError: no weights named, or no such file.
        """
        if not weights:
            raise UserError("MODEL.WEIGHTS is empty: prediction needs the weights of a trained model")
        self.model = model.eval()
        self.metadata = metadata
        self._mapper = mapper
        Checkpointer(self.model).load(weights)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor: the model, and the classes of the first data set of TEST or TRAIN."""
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        return {
            "model": build_model(cfg),
            "mapper": SegMapper(cfg, is_train=False),
            "metadata": MetadataCatalog.get(names[0]) if names else Metadata(),
            "weights": cfg.MODEL.WEIGHTS,
        }

    @torch.no_grad()
    def __call__(self, image: str | Path | np.ndarray) -> dict[str, Any]:
        """Predict one image.

        Args:
            image: a file, or an (H, W, C) uint8 or float32 array in INPUT.FORMAT, see
                :func:`seg_ext.data.image_io.read_image`.

        Returns:
            The model's output, see :class:`seg_ext.modeling.meta_arch.PanopticSegmentor`.
        """
        array = image if isinstance(image, np.ndarray) else self._mapper.read(image)
        return self.model([self._mapper.map_image(array)])[0]
