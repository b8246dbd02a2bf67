"""Configuration: the keys that seg_ext adds to detectron2's, and loading that explains what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from seg_ext.errors import UserError

CONFIG_ROOTS = (Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs")


def add_seg_ext_config(cfg: CfgNode) -> None:
    """Add seg_ext's keys, with their defaults, to a detectron2 config in place."""
    head = cfg.MODEL.SEM_SEG_HEAD
    head.DECODER = CfgNode()
    head.DECODER.NAME = ""  # a name of seg_ext.decoders.DECODERS, or "package.module:Class"
    head.DECODER.ARGS = CfgNode(new_allowed=True)  # keyword arguments of the decoder's constructor
    head.LOSSES = [{"NAME": "cross_entropy"}]  # each with WEIGHT (default 1) and the loss's own arguments
    head.ALIGN_CORNERS = False  # of the resizing of scores to the image's size; segmentation_models_pytorch's True
    head.AUX_WEIGHT = 0.4  # weight of every auxiliary output's losses
    head.THING_IDS = []  # semantic ids that denote things; panoptic fusion never emits them as stuff

    resnets = cfg.MODEL.RESNETS
    resnets.OUTPUT_STRIDE = 32  # 8, 16 or 32: later strides become dilations
    resnets.MULTI_GRID = [1, 1, 1]  # factors on the dilation of the units of res5 and of its copies
    resnets.CASCADE = 0  # copies of res5 after it, up to 3: res6, res7, res8
    resnets.FIRST_DILATION = "own"  # rate of a dilated stage's first unit: its "own", or the "previous" stage's
    resnets.DILATIONS = []  # of res2, res3, ..., one a stage, in place of those that make up for OUTPUT_STRIDE
    resnets.BASIC_DILATION = "both"  # convolutions that dilate in units of; "first": mmsegmentation's
    resnets.DEEP_STEM = False  # three 3x3 convolutions in place of the 7x7

    vgg = cfg.MODEL.VGG = CfgNode()
    vgg.VARIANT = "plain"  # a name of seg_ext.encoders.VGG_VARIANTS: fcn, segnet, deeplab_largefov, dilated, ...
    vgg.WIDTH = 64  # channels of conv1; all others are multiples of it
    vgg.NORM = ""  # after every convolution but fc6 and fc7
    vgg.DROPOUT = 0.5  # after fc6 and fc7 and Bayesian SegNet's deep pools
    vgg.OUT_FEATURES = ["pool3", "pool4", "pool5"]  # conv1..5, pool1..5, pool1_indices..5_indices, fc7

    xception = cfg.MODEL.XCEPTION = CfgNode()
    xception.DEPTH = 65  # 41, 65 or 71
    xception.NORM = "BN"
    xception.OUTPUT_STRIDE = 16  # 8, 16 or 32: later strides become dilations
    xception.OUT_FEATURES = ["entry2", "exit"]  # entry2, entry3, exit1, exit

    unet = cfg.MODEL.UNET = CfgNode()
    unet.WIDTH = 64  # channels of level1; each later level doubles them
    unet.DEPTH = 5  # levels
    unet.NORM = ""
    unet.VALID = False  # convolutions without padding, as in the paper
    unet.MIRROR = False  # with VALID: mirror the image's borders so that the prediction covers the image
    unet.BIAS = False  # in a convolution before a norm too
    unet.DROPOUT = 0.5
    unet.DROPOUT_AFTER = "deep levels"  # the last two, or every one of the "convs"
    unet.OUT_FEATURES = ["level1", "level2", "level3", "level4", "level5"]

    timm = cfg.MODEL.TIMM = CfgNode()
    timm.NAME = ""  # a model of timm that gives features
    timm.PRETRAINED = False  # fetch the weights that timm names for it
    timm.OUTPUT_STRIDE = 0  # 8, 16 or 32 where the model can dilate; 0 leaves its own
    timm.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]  # in the order of timm's feature_info

    embed = cfg.MODEL.INS_EMBED_HEAD = CfgNode()  # Panoptic-DeepLab's centres and offsets, beside a semantic head
    embed.NAME = ""  # InstanceEmbeddingHead; empty for none. It needs {NAME: panoptic_ids} in INPUT.TARGETS
    embed.IN_FEATURES = ["res2", "res3", "res5"]
    embed.NORM = "BN"
    embed.ARGS = CfgNode(new_allowed=True)  # of seg_ext.decoders.panoptic_deeplab.PanopticDeepLabInstances
    embed.SIGMA = 10.0  # of the heat around a centre, pixels
    embed.CENTER_WEIGHT = 200.0
    embed.OFFSET_WEIGHT = 0.01
    embed.SMALL_AREA = 4096  # pixels; smaller instances weigh SMALL_WEIGHT in the semantic losses that take weights
    embed.SMALL_WEIGHT = 3.0
    embed.CENTER_THRESHOLD = 0.1  # a centre is hotter, and the greatest of NMS_KERNEL^2 pixels; TOP_K of them at most
    embed.NMS_KERNEL = 7
    embed.TOP_K = 200
    embed.THING_CLASSES = []  # instance class of each of SEM_SEG_HEAD.THING_IDS; empty: those of the data, or 0, 1, ...
    embed.STUFF_AREA = 2048  # pixels of an image; a class of stuff with fewer is left out

    norm = cfg.MODEL.BN = CfgNode()  # every BatchNorm of the model
    norm.MOMENTUM = None  # share of a new batch in the running statistics; None leaves each layer its own
    norm.EPS = None  # added to the variance; None likewise
    norm.FROZEN = ""  # the statistics and affine values of those of the "backbone" or of "all" stay as they are

    cfg.DATASETS.FILES = []  # your own data: paths of data.yaml files, in a run's config what they said
    cfg.DATASETS.FOLDERS = []  # data sets from folders: [{NAME, IMAGES, LABELS, CLASSES, IGNORE, LABEL_MAP}]
    cfg.INPUT.AUGMENTATIONS = []  # [{NAME: ..., PROBABILITY: 1, arguments}]; empty: detectron2's own from INPUT.*
    cfg.INPUT.AUGMENTATIONS_TEST = []  # Resize or ResizeShortestEdge; empty: the latter from INPUT.M*_SIZE_TEST
    paste = cfg.INPUT.COPY_PASTE = CfgNode()  # objects of other training images; needs INPUT.MASK_FORMAT bitmask
    paste.PROBABILITY = 0.0  # of an image to get some
    paste.MAX_OBJECTS = 20  # at most this many, drawn uniformly
    paste.MIN_VISIBLE = 0.1  # an instance below that keeps a smaller share of its pixels is dropped
    cfg.INPUT.TARGETS = []  # [{NAME: ..., arguments}] of seg_ext.data.targets.TARGETS: what losses want beside labels
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []  # [[name, factor]] for DATALOADER.SAMPLER_TRAIN WeightedTrainingSampler
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0  # for DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler
    cfg.DATALOADER.ON_ERROR = "stop"  # at a training image that cannot be read; or "skip" it
    solver = cfg.SOLVER
    solver.OPTIMIZER = "SGD"  # SGD, ADAM, ADAMW, SCHEDULE_FREE_SGD or SCHEDULE_FREE_ADAMW
    solver.BACKBONE_LR_FACTOR = 1.0  # on BASE_LR in the backbone; 0 keeps it as it is
    solver.HEAD_LR_FACTOR = 1.0  # on BASE_LR in everything else; a bias's BIAS_LR_FACTOR multiplies either
    solver.REFERENCE_BATCH_SIZE = 0  # BASE_LR is meant for so many images and scales with IMS_PER_BATCH; 0 for not
    solver.POLY_LR_POWER = 0.9  # exponent of LR_SCHEDULER_NAME WarmupPolyLR
    solver.CHECKPOINT_KEEP = 0  # numbered checkpoints that stay, the newest; 0 for all
    one_cycle = solver.ONE_CYCLE = CfgNode()  # OneCycleLR: from START_FACTOR to 1 at PEAK to END_FACTOR, cosines
    one_cycle.PEAK = 0.3  # share of MAX_ITER
    one_cycle.START_FACTOR = 0.04
    one_cycle.END_FACTOR = 4e-6
    # Parts of IMS_PER_BATCH, which stays the images of an update, so that a recipe keeps its batch and rates on a
    # smaller GPU: gradients of the parts are averaged, BatchNorm sees a part at a time.
    solver.ACCUMULATE = 1
    solver.AMP.PRECISION = ""  # float16 or bfloat16; empty: float16 on a GPU, bfloat16 on the CPU
    solver.CHANNELS_LAST = None  # True or False; None: on a GPU with AMP alone, where it gains
    solver.COMPILE = CfgNode({"ENABLED": False})  # torch.compile for backbone and decoder in training; minutes at first
    solver.COMPILE.BACKEND = "inductor"
    # Beside detectron2's "value" and "norm" (of each parameter) CLIP_GRADIENTS.CLIP_TYPE takes "full_model": the norm
    # of all gradients together.
    ema = solver.EMA = CfgNode({"ENABLED": False})  # moving average of the weights, scored and saved as "model"
    ema.DECAY = 0.999  # share of the old average
    ema.WARMUP = True  # of update n no more than (1 + n) / (10 + n), so that the first weights are soon forgotten
    ema.START = 0  # iteration after which the average begins, as a copy of the weights
    # Modules of the backbone ([res3, res4]) that keep their input alone and run again in the backward pass (activation
    # checkpointing): less memory for about a third more time.
    cfg.MODEL.BACKBONE.RECOMPUTE = []
    # For many classes or large images: the model gives sem_seg_labels, found some rows at a time, in place of the
    # scores (K, H, W). Windows, TTA and INS_EMBED_HEAD take the scores and leave the labels alone at their end.
    cfg.TEST.LABELS_ONLY = False
    window = cfg.TEST.SLIDING_WINDOW = CfgNode({"SIZE": []})  # [height, width] of windows over a test image
    window.OVERLAP = 1 / 3  # share of a window's height and width that the next one covers again, at least
    # Weights of a window's pixels where several meet: falling off to its edges, or "uniform"; "scores" is uniform, of
    # scores in place of probabilities, in windows at full steps from the first pixel, as mmsegmentation has it.
    window.BLEND = "hann"
    window.BATCH = 1  # windows that the model gets at once
    tta = cfg.TEST.TTA = CfgNode({"SCALES": [], "FLIP": False})  # factors on the test image's size; FLIP adds mirrored
    tta.NMS = 0.5  # boxes of one class above this IoU, found at several scales or flips, are one instance
    loading = cfg.MODEL.LOADING = CfgNode({"PARTIAL": False})  # take weights that lack more than half of the model
    loading.TABLE = False  # log what became of every tensor of MODEL.WEIGHTS and of the model
    cfg.TEST.PRUNE = ""  # L1 to L4: the part of a U-Net++ that ends in that classifier, alone
    dropout = cfg.TEST.MC_DROPOUT = CfgNode({"SAMPLES": 0})  # passes with dropout on, averaged; 0: one with it off
    dropout.BATCH = 1  # passes that run at once
    dropout.SEED = 0  # of the dropped units
    # What becomes of semantic scores: {NAME: dense_crf, arguments of seg_ext.inference.refine.build_dense_crf}, then
    # {NAME: morphology, STEPS: [{NAME: opening, CLASSES: [1, 2], radius: 2}]} of seg_ext.postprocess.morphology.
    cfg.TEST.REFINE = []
    cfg.TEST.GALLERY = 0  # pictures in the gallery of an evaluation, worst first; 0 for none
    # Of boundary (Boundary IoU), bf (contour F1), trimap, calibration (ECE), uncertainty (risk against coverage)
    cfg.TEST.SEMANTIC_METRICS = ["boundary"]
    cfg.TEST.PER_IMAGE = False  # keep each image's counts or matches in per_image_<task>.jsonl, for `seg-ext compare`
    cfg.TEST.INSTANCE_METRICS = ["coco"]  # of coco, boundary (AP on min of mask and boundary IoU), voc (AP^r), tide
    cfg.TEST.PICTURES = 0  # images whose predictions each evaluation of a training shows in TensorBoard or W&B
    cfg.TEST.VALIDATION_LOSS = False  # each evaluation of a training gives the training's losses on DATASETS.TEST too
    cfg.TEST.BEST = ""  # score such as sem_seg/mIoU or validation/total_loss: the best evaluation's model_best.pth
    cfg.TEST.BEST_MODE = ""  # max or min; empty: min for a loss, an error or a distance
    stop = cfg.TEST.EARLY_STOP = CfgNode({"PATIENCE": 0})  # evaluations without a better TEST.BEST; 0: never stop
    stop.MIN_DELTA = 0.0  # for the patience a score that is better by no more than this is no better
    cfg.WRITERS = ["json", "tensorboard"]  # of a training's numbers; also wandb, mlflow


def get_cfg() -> CfgNode:
    """detectron2's default config with seg_ext's keys."""
    cfg = get_detectron2_cfg()
    add_seg_ext_config(cfg)
    return cfg


def find_config(path: str | Path) -> Path:
    """The file itself, or the config of that name shipped with seg_ext (``"camvid/unet_R_18_cpu.yaml"``)."""
    candidates = [Path(path), *(root / path for root in CONFIG_ROOTS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = [str(file.relative_to(root)) for root in CONFIG_ROOTS for file in root.glob("*/*.yaml")]
    raise UserError(f"config file {path} not found{_did_you_mean(str(path), shipped)}")


def load_config(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Read a yaml over the defaults, then ``KEY VALUE`` overrides.

    Raises:
        UserError: no such file, not plain yaml, a key that nobody knows (with the nearest known one), a wrong type.
    """
    cfg = get_cfg()
    file = find_config(path)
    _merge(cfg, _read(file), str(file))
    _merge_opts(cfg, opts)
    return cfg


def parse_config(text: str, source: str, opts: Sequence[str] = (), *, base: str = "") -> CfgNode:
    """The config of a yaml text without ``_BASE_``, such as a dumped one, then ``KEY VALUE`` overrides.

    Args:
        text: plain yaml.
        source: what to call it where something is wrong.
        opts: overrides.
        base: config file under it, see :func:`find_config`; without one, the defaults.

    Raises:
        UserError: as :func:`load_config`.
    """
    cfg = load_config(base) if base else get_cfg()
    try:
        node = CfgNode(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{source}: not a config in plain yaml: {' '.join(str(error).split())}") from error
    _merge(cfg, node, source)
    _merge_opts(cfg, opts)
    return cfg


def given_keys(path: str | Path, opts: Sequence[str] = ()) -> dict[str, str]:
    """Where each key that is no default was set: the key with dots -> "the command line", or the yaml file.

    Args:
        path: as for :func:`load_config`, which says what is wrong with it.
        opts: likewise.
    """
    file = find_config(path)
    own = yaml.safe_load(file.read_text()) or {}
    places = dict.fromkeys(_all_keys(_read(file)), f"the _BASE_ of {file}") | dict.fromkeys(_all_keys(own), str(file))
    return places | dict.fromkeys(opts[::2], "the command line")


def _read(file: Path) -> CfgNode:
    try:
        return CfgNode(CfgNode.load_yaml_with_base(str(file), allow_unsafe=False))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not plain yaml: {' '.join(str(error).split())}") from error
    except (OSError, AssertionError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as a config: {error}") from error


def has_instances(cfg: CfgNode) -> bool:
    """Whether the model of this config predicts instances with heads on regions."""
    return cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor" and bool(cfg.MODEL.ROI_HEADS.NAME)


def embeds_instances(cfg: CfgNode) -> bool:
    """Whether the model of this config finds instances by centres and offsets (Panoptic-DeepLab)."""
    return cfg.MODEL.META_ARCHITECTURE == "PanopticSegmentor" and bool(cfg.MODEL.INS_EMBED_HEAD.NAME)


def has_semantics(cfg: CfgNode) -> bool:
    """Whether the model of this config predicts a semantic map."""
    return cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" and bool(cfg.MODEL.SEM_SEG_HEAD.NAME)


def refuse_foreign_code(cfg: CfgNode, source: str, remedy: str) -> None:
    """Refuse a config that nobody named, as one found beside weights, whose decoder would be imported.

    Raises:
        UserError: DECODER.NAME is "package.module:Class" outside seg_ext; from ``source`` to ``remedy``.
    """
    decoder = cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME
    if ":" in decoder and not decoder.startswith("seg_ext.decoders."):
        raise UserError(f"{source}: DECODER.NAME {decoder} is foreign code; {remedy}")


def _merge(cfg: CfgNode, other: CfgNode, source: str) -> None:
    _fit_values(cfg, other, source)
    try:
        cfg.merge_from_other_cfg(other)
    except (KeyError, ValueError, AssertionError) as error:
        text = str(error.args[0]) if error.args else str(error)
        unknown = re.search(r"Non-existent config key: (\S+)", text)
        if unknown:
            raise UserError(f"{source}: {_unknown_key(cfg, unknown[1])}") from error
        raise UserError(f"{source}: {' '.join(text.split())}") from error


def _merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    if len(opts) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs; {opts[-1]!r} has no value")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        *parents, leaf = key.split(".")
        node = cfg
        for parent in parents:
            node = node.get(parent) if isinstance(node, CfgNode) else None
        if not isinstance(node, CfgNode) or (leaf not in node and not node.is_new_allowed()):
            raise UserError(f"command line: {_unknown_key(cfg, key)}")
        if leaf not in node:
            node[leaf] = CfgNode._decode_cfg_value(value)
            continue
        given = {leaf: CfgNode._decode_cfg_value(value)}
        _fit_values(node, given, "command line", key.removesuffix(leaf))
        try:
            cfg.merge_from_list([key, given[leaf] if isinstance(given[leaf], float) else value])
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(f"command line: {key} {value}: {' '.join(str(error).split())}") from error


def _fit_values(cfg: Mapping[str, Any], other: MutableMapping[str, Any], source: str, prefix: str = "") -> None:
    """Make a whole number a float where the default is one, which yacs refuses; refuse keys without a value.

    Those yacs lets pass, where the default is a number, a truth value or a list, or answers with the whole node.
    """
    for key, value in other.items():
        default = cfg.get(key)
        if isinstance(value, MutableMapping) and isinstance(default, Mapping):
            _fit_values(default, value, source, f"{prefix}{key}.")
        elif value is None and isinstance(default, Mapping):
            keys = f"keys such as {', '.join([*default][:3])}" if default else "{}"
            raise UserError(f"{source}: {prefix}{key} has no value; takes {keys}")
        elif value is None and isinstance(default, (int, float, list, tuple)):
            raise UserError(f"{source}: {prefix}{key} has no value; takes one such as {default!r}")
        elif isinstance(default, float) and type(value) is int:
            other[key] = float(value)


def _unknown_key(cfg: CfgNode, key: str) -> str:
    return f"unknown key {key}{_did_you_mean(key, _all_keys(cfg))}"


def _all_keys(cfg: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, Mapping):
            keys += _all_keys(value, f"{prefix}{name}.")
    return keys


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
