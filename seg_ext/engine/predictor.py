"""Predictor: a trained model, from its checkpoint, as a function of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from seg_ext.checkpoint import Checkpointer
from seg_ext.checkpoint.sidecar import config_of, metadata_of, read_sidecar
from seg_ext.config import given_keys, has_instances, has_semantics, load_config, refuse_foreign_code
from seg_ext.data.image_io import read_image
from seg_ext.data.mapper import SegMapper
from seg_ext.engine.checks import complete_config
from seg_ext.engine.class_weights import resolve_class_weights
from seg_ext.engine.predictors import build_predictor
from seg_ext.engine.prune import prune
from seg_ext.engine.run_folder import CONFIG
from seg_ext.engine.setup import register_data
from seg_ext.errors import UserError
from seg_ext.inference.backends import accelerate

Image = str | Path | NDArray[np.uint8] | NDArray[np.float32]
_SHOWN = 3  # names in a line


class Predictor:
    """``Predictor("output/model_final.pth")("street.jpg")`` gives the model's output for the image, at its size.

    Calls from several threads are safe; they share the model.

    Attributes:
        config: the model's, complete.
        model: in eval mode, on MODEL.DEVICE.
        mapper: from images to the model's inputs.
        metadata: class names and colours, of the data set that the config names or else of the checkpoint.
    """

    def __init__(
        self,
        weights: str | Path | CfgNode,
        *,
        config: str | Path = "",
        opts: Sequence[str] = (),
        backend: str = "eager",
        expected: int = 1,
        trust_code: bool = False,
    ) -> None:
        """Build the model and load its weights.

        Args:
            weights: checkpoint, as MODEL.WEIGHTS takes it; or a whole config with MODEL.WEIGHTS, which is not changed.
            config: yaml; "" takes the one in the checkpoint, or else the config.yaml in its folder.
            opts: ``KEY VALUE`` overrides, such as ["MODEL.DEVICE", "cpu"]; not with a whole config.
            backend: see :func:`seg_ext.inference.backends.accelerate`.
            expected: images to come, about; backend "auto" takes longer to choose for many.
            trust_code: allow a decoder outside seg_ext that the config names.

        Raises:
            UserError: no weights or no config, what is wrong with them, or weights that are not of this model.
        """
        if isinstance(weights, CfgNode):
            cfg = weights.clone()
            cfg.defrost()
        else:
            cfg = find_config(weights, config, opts, trust_code=trust_code)
        if not cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS is empty: prediction needs the weights of a trained model")
        register_data(cfg)
        resolve_class_weights(cfg, training=False)
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        self.config = cfg
        self.metadata = MetadataCatalog.get(names[0]) if names else metadata_of(read_sidecar(cfg.MODEL.WEIGHTS))
        self.mapper = SegMapper(cfg, is_train=False)
        self.model: nn.Module = build_model(cfg).eval()
        _load(self.model, cfg.MODEL.WEIGHTS)
        if cfg.TEST.PRUNE:
            cfg, self.model = prune(cfg, self.model, cfg.TEST.PRUNE)
        _check_names(cfg, self.metadata)
        self._predict = build_predictor(cfg, self.model)
        accelerate(self.model, backend, expected=expected, keep_modules=_needs_modules(cfg))

    def __call__(self, image: Image) -> dict[str, Any]:
        """Predict one image.

        Args:
            image: a file, or an (H, W, C) uint8 or float32 array in INPUT.FORMAT, see
                :func:`seg_ext.data.image_io.read_image`.

        Returns:
            The model's output, see :class:`seg_ext.modeling.meta_arch.PanopticSegmentor`: ``sem_seg`` (K, H, W) scores,
            ``instances``, ``panoptic_seg``, as far as it has the heads, and what the wrappers of TEST add.

        Raises:
            UserError: a file that cannot be read, or an array that the model does not take.
        """
        return self.batch([image])[0]

    def batch(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """Predict several images at once; those of one size are one batch for the model."""
        arrays = [image if isinstance(image, np.ndarray) else self.read(image) for image in images]
        return self.predict([self.mapper.map_image(array) for array in arrays])

    def read(self, path: str | Path, *, page: int | None = None) -> NDArray[Any]:
        """(H, W, C): an image file in INPUT.FORMAT; of a TIFF a page, see :func:`seg_ext.data.image_io.read_image`."""
        return read_image(path, self.mapper.image_format, bands=self.mapper.bands, page=page)

    @torch.no_grad()
    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict what :meth:`seg_ext.data.mapper.SegMapper.map_image` gives: detectron2's input and output format."""
        return self._predict(inputs) if inputs else []


def find_config(
    weights: str | Path, config: str | Path = "", opts: Sequence[str] = (), *, trust_code: bool = False
) -> CfgNode:
    """The complete config that goes with weights, MODEL.WEIGHTS being these.

    Args:
        weights: as MODEL.WEIGHTS takes it.
        config: yaml; "" takes the one in the checkpoint, or else the config.yaml in its folder.
        opts: overrides.
        trust_code: allow a decoder outside seg_ext that a config found with the weights names.

    Raises:
        UserError: there is none, or what is wrong with it.
    """
    name, beside = str(weights), Path(weights).parent / CONFIG
    if Path(name).is_dir():
        raise UserError(f"weights {name}: a folder; takes a checkpoint such as {Path(name) / 'model_final.pth'}")
    if "://" not in name and not Path(name).is_file() and not name.endswith(".yaml"):
        raise UserError(f"weights {name} not found: takes a checkpoint file or URL")
    given: dict[str, str] | None = None
    if config:
        cfg = load_config(config, opts)
        given = given_keys(config, opts)
    elif read_sidecar(name).get("config"):
        cfg = config_of(name, opts, trust_code=trust_code)
    elif beside.is_file():
        cfg = load_config(beside, opts)
        if not trust_code:
            refuse_foreign_code(cfg, str(beside), "allow it with --trust-code")
    else:
        raise UserError(f"weights {name}: no config in it and no {CONFIG} in its folder: give --config-file")
    cfg.MODEL.WEIGHTS = name
    register_data(cfg)
    complete_config(cfg, given)
    return cfg


def _load(model: nn.Module, weights: str) -> None:
    """Load all of a model; what only training needs may be missing.

    Raises:
        UserError: the file cannot be read, or its tensors are not the model's.
    """
    checkpointer = Checkpointer(model)
    checkpointer.load(weights)
    report = checkpointer.report
    shapes = [f"{name} {there} there, {here} here" for name, (there, here) in report.mismatched.items()]
    if shapes:
        more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        raise UserError(f"weights {weights}: {shapes[0]}{more}; does NUM_CLASSES in the config fit the weights?")
    known = {*report.loaded, *report.by_class}
    lacking = [name for name in model.state_dict() if name not in known and not name.endswith("num_batches_tracked")]
    lacking = [name for name in lacking if "aux" not in name]
    if lacking:
        names = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
        raise UserError(
            f"weights {weights}: {len(lacking)} tensors of the model are not in it ({names}); prediction needs the"
            " checkpoint of a training"
        )


def _check_names(cfg: CfgNode, metadata: Metadata) -> None:
    """Refuse class names that are not as many as the model's classes."""
    heads = (
        (has_semantics(cfg), "SEM_SEG_HEAD", "stuff_classes", 2),
        (has_instances(cfg), "ROI_HEADS", "thing_classes", 1),
    )
    for there, head, key, least in heads:
        names, count = metadata.get(key), cfg.MODEL[head].NUM_CLASSES
        if there and names and len(names) != max(count, least):
            raise UserError(
                f"MODEL.{head}.NUM_CLASSES is {count}, but {metadata.get('name', 'the checkpoint')} names {len(names)}"
                " classes; name the data set that the model was trained on, or DATASETS.TEST ()"
            )


def _needs_modules(cfg: CfgNode) -> bool:
    """Whether something switches the model's dropout, or asks its head for scores that are not yet resized."""
    return bool(cfg.TEST.MC_DROPOUT.SAMPLES or cfg.TEST.LABELS_ONLY)
