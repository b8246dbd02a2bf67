"""What a config may say about its data."""

import types

import pytest
from detectron2.data import MetadataCatalog

from seg_ext.config import load_config
from seg_ext.engine.checks import complete_config, thing_sem_seg_ids
from seg_ext.errors import UserError


def nuclei(*opts: str):
    return load_config("nuclei/panoptic_unet_R_18_FPN.yaml", ["MODEL.DEVICE", "cpu", *opts])


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
