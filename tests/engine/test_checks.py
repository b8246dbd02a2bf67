"""What a config may say about its data."""

import pickle
import types
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.config import find_config, get_cfg, given_keys, has_instances, has_semantics, load_config
from seg_ext.engine.checks import check_records, complete_config, thing_sem_seg_ids
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


def test_a_config_without_a_head_is_left_to_the_model_to_refuse(panoptic: Path) -> None:
    cfg = completed(panoptic, "MODEL.ROI_HEADS.NAME", "", "MODEL.SEM_SEG_HEAD.NAME", "")
    assert not has_instances(cfg) and not has_semantics(cfg)


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


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MODEL.DEVICE", "gpu", "MODEL.DEVICE 'gpu': takes cpu, cuda, or one of several GPUs as cuda:1"),
        ("MODEL.DEVICE", "cuda:7", "MODEL.DEVICE cuda:7: this machine has 2 GPUs, from cuda:0 on"),
        ("DATALOADER.NUM_WORKERS", "-1", "DATALOADER.NUM_WORKERS -1: takes a number of processes, or 0"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(
    key: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cfg = nuclei(key, value)
    with pytest.raises(UserError, match=f"^{said}$"):
        complete_config(cfg)
    complete_config(nuclei("MODEL.DEVICE", "cuda:1"))


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
        (
            {"stuff_classes": ["a", "b"], "thing_classes": ["a", "b"], "thing_dataset_id_to_contiguous_id": {9: 1}},
            (1,),
        ),
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


MIXED = ("DATASETS.TRAIN", "('camvid_train', 'voc_instances_train')", "DATASETS.TEST", "()")


def test_heads_may_learn_from_different_data_sets(panoptic: Path) -> None:
    cfg = completed(panoptic, *MIXED)
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (11, 20)
    sets = "('voc_sem_seg_train', 'voc_instances_train')"
    assert completed(panoptic, "DATASETS.TRAIN", sets).MODEL.SEM_SEG_HEAD.THING_IDS == list(range(1, 21))
    with pytest.raises(UserError, match="camvid_train has no instances"):
        completed(panoptic, "DATASETS.TRAIN", "('camvid_train', 'camvid_val')")


def registered(name: str, **metadata) -> str:
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(**metadata)
    return name


THINGS = {"thing_classes": ["car"], "stuff_classes": ["road", "sky", "car"], "thing_sem_seg_ids": (2,)}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"thing_sem_seg_ids": (3,)}, r"thing_sem_seg_ids has 3 .*; takes 0 to 2, one of its stuff_classes"),
        ({"thing_sem_seg_ids": (0, 2)}, r"category 7 is no thing by its category, but its semantic class 0 \(road\)"),
        (
            {"thing_sem_seg_ids": ()},
            r"category 9 is a thing .* semantic class 2 \(car\) is not among .*overlap",
        ),
    ],
)
def test_things_and_stuff_that_overlap_are_refused(metadata: dict, said: str, panoptic: Path) -> None:
    ids = {"thing_dataset_id_to_contiguous_id": {9: 0}, "stuff_dataset_id_to_contiguous_id": {7: 0, 8: 1, 9: 2}}
    name = registered("overlapping", **(THINGS | ids | metadata))
    try:
        with pytest.raises(UserError, match=f"^data set overlapping: {said}"):
            completed(panoptic, "DATASETS.TRAIN", f"('{name}',)")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"annotations": []},
            "^data set a: none of 2 images has label maps, and MODEL.SEM_SEG_HEAD SegHead needs",
        ),
        ({"sem_seg_file_name": "x"}, "^data set a: none of 2 images has instances, and MODEL.ROI_HEADS StandardROI"),
        (
            {"sem_seg_file_name": "x", "annotations": [{"category_id": 0}, {"category_id": 4}]},
            "^i.png: an annotation of class 4; MODEL.ROI_HEADS.NUM_CLASSES 1 takes 0 to 0",
        ),
    ],
)
def test_records_without_what_a_head_needs_are_refused(record: dict, said: str) -> None:
    cfg = nuclei()
    complete_config(cfg)
    with pytest.raises(UserError, match=said):
        check_records(cfg, {"a": [{"file_name": "i.png"} | record] * 2})
    whole = {"sem_seg_file_name": "x", "annotations": [{"category_id": 0}]}
    check_records(cfg, {"a": [{"file_name": "i.png"} | record], "b": [whole]} if len(record) == 1 else {"b": [whole]})


def test_a_head_of_centres_takes_its_things_from_the_semantic_classes() -> None:
    file = find_config("cityscapes/panoptic_deeplab_R_52_os16.yaml")
    cfg = completed(file)
    assert cfg.MODEL.SEM_SEG_HEAD.THING_IDS == cfg.MODEL.INS_EMBED_HEAD.THING_CLASSES == list(range(11, 19))
    ids = ("MODEL.SEM_SEG_HEAD.THING_IDS", str([*range(11, 19)]))
    assert completed(file, *ids).MODEL.INS_EMBED_HEAD.THING_CLASSES == list(range(11, 19))
    cfg = completed(file, "MODEL.INS_EMBED_HEAD.THING_CLASSES", str([*range(8)]))
    assert cfg.MODEL.INS_EMBED_HEAD.THING_CLASSES == list(range(8)), "what is given stays"
    opts = ("DATASETS.TRAIN", "('nuclei_train',)", "DATASETS.TEST", "()", SEMANTIC, "2")
    cfg = completed(file, *opts)
    assert (cfg.MODEL.SEM_SEG_HEAD.THING_IDS, cfg.MODEL.INS_EMBED_HEAD.THING_CLASSES) == ([1], [0])
    merged = ("DATASETS.TRAIN", "('coco_2017_train_panoptic_separated',)", "DATASETS.TEST", "()", SEMANTIC, "54")
    with pytest.raises(UserError, match="has 80 classes of things, but 1 of its semantic classes are things"):
        completed(file, *merged)
