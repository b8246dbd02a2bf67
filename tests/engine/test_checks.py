"""What a config may say about its data."""

import pickle
import types
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from seg_ext.config import find_config, get_cfg, given_keys, has_instances, load_config
from seg_ext.engine.checks import complete_config, thing_sem_seg_ids
from seg_ext.errors import UserError


def nuclei(*opts: str):
    return load_config("nuclei/panoptic_unet_R_18_FPN.yaml", ["MODEL.DEVICE", "cpu", *opts])


SEMANTIC = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
INSTANCE = "MODEL.ROI_HEADS.NUM_CLASSES"


def completed(file: Path, *opts: str):
    cfg = load_config(file, ["MODEL.DEVICE", "cpu", *opts])
    complete_config(cfg, given_keys(file, opts))
    return cfg


@pytest.fixture
def panoptic(tmp_path: Path) -> Path:
    """A panoptic config of the nuclei, which sets no number of classes."""
    base = find_config("Base-Panoptic.yaml")
    (tmp_path / "p.yaml").write_text(
        f"_BASE_: {base}\nMODEL: {{SEM_SEG_HEAD: {{DECODER: {{NAME: unet}}}}}}\nDATASETS: {{TRAIN: [nuclei_train]}}\n"
    )
    return tmp_path / "p.yaml"


def test_class_numbers_that_nobody_sets_follow_from_the_data(panoptic: Path) -> None:
    cfg = completed(panoptic)
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (2, 1)
    cfg = completed(panoptic, "MODEL.ROI_HEADS.NAME", "", "DATASETS.TRAIN", "('camvid_train',)")
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 11 and not has_instances(cfg)


@pytest.mark.parametrize("key", [SEMANTIC, INSTANCE])
def test_a_class_number_that_contradicts_the_data_names_both_numbers_and_places(key: str, panoptic: Path) -> None:
    count = {SEMANTIC: 2, INSTANCE: 1}[key]
    where = "where it is registered"
    said = (
        rf"^{key} is %d, but data set nuclei_train has {count} classes: the former is set by %s, the latter by {where}"
    )
    with pytest.raises(UserError, match=said % (7, "the command line")):
        completed(panoptic, key, "7")
    default = {SEMANTIC: 54, INSTANCE: 80}[key]
    head = key.split(".")[1]
    lower = panoptic.with_name("lower.yaml")
    lower.write_text(f"_BASE_: p.yaml\nMODEL: {{{head}: {{NUM_CLASSES: {default}}}}}\n")
    with pytest.raises(UserError, match=said % (default, str(lower))):
        completed(lower)
    top = panoptic.with_name("top.yaml")
    top.write_text("_BASE_: lower.yaml\n")
    with pytest.raises(UserError, match=said % (default, f"the _BASE_ of {top}")):
        completed(top)


def test_data_sets_with_different_numbers_of_classes_do_not_mix(panoptic: Path) -> None:
    opts = ("MODEL.ROI_HEADS.NAME", "", "DATASETS.TRAIN", "('camvid_train',)", "DATASETS.TEST", "('nuclei_test',)")
    with pytest.raises(UserError, match=r"is 11, but data set nuclei_test has 2 .* set by data set camvid_train"):
        completed(panoptic, *opts)


def test_one_sigmoid_channel_for_two_classes_stays(panoptic: Path) -> None:
    assert completed(panoptic, SEMANTIC, "1").MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1


def test_instances_alone_do_not_serve_a_semantic_head() -> None:
    cfg = load_config("camvid/unet_R_18_cpu.yaml", ["DATASETS.TRAIN", "('coco_2017_val',)", "MODEL.DEVICE", "cpu"])
    with pytest.raises(UserError, match="coco_2017_val has no semantic classes .*SegHead needs label maps"):
        complete_config(cfg)


def test_where_keys_were_set_leaves_the_config_as_it_is(panoptic: Path) -> None:
    places = given_keys(panoptic, ["SOLVER.MAX_ITER", "3"])
    assert places["SOLVER.MAX_ITER"] == "the command line" and SEMANTIC not in places
    assert places["DATASETS.TRAIN"] == str(panoptic) and places["MODEL.MASK_ON"] == f"the _BASE_ of {panoptic}"
    cfg = load_config(panoptic)
    assert pickle.loads(pickle.dumps(cfg)) == cfg and set(cfg) == set(get_cfg()) and vars(cfg) == vars(get_cfg())


def test_thing_ids_follow_from_the_data() -> None:
    cfg = nuclei()
    complete_config(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.THING_IDS == [1]


@pytest.mark.parametrize(
    ("metadata", "ids"),
    [
        ({"thing_sem_seg_ids": (3, 4), "stuff_classes": ["a"]}, (3, 4)),
        ({"stuff_classes": ["things", "sky"], "thing_classes": ["car"]}, (0,)),
        ({"stuff_classes": ["sky", "car"], "thing_classes": ["car"]}, (1,)),
        ({"stuff_classes": ["sky", "road"]}, ()),
    ],
)
def test_thing_ids_are_stated_merged_or_named(metadata: dict, ids: tuple) -> None:
    assert thing_sem_seg_ids(types.SimpleNamespace(**metadata)) == ids


def test_ade20k_of_detectron2_needs_its_150_classes() -> None:
    cfg = load_config("camvid/unet_R_18_cpu.yaml", ["DATASETS.TRAIN", "('ade20k_sem_seg_train',)"])
    names = len(MetadataCatalog.get("ade20k_sem_seg_train").stuff_classes)
    with pytest.raises(UserError, match=f"NUM_CLASSES is 11, but data set ade20k_sem_seg_train has {names} classes"):
        complete_config(cfg)


def test_a_semantic_set_under_a_panoptic_model_is_refused() -> None:
    cfg = nuclei("DATASETS.TRAIN", "('camvid_train',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "11")
    with pytest.raises(UserError, match="camvid_train has no instances"):
        complete_config(cfg)
