"""The gallery keeps the worst, shows them worst first, links what exists, and scores as its page says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools import mask as mask_util

from seg_ext.errors import UserError
from seg_ext.evaluation.figures import bars_html, confusion_picture, curves_html
from seg_ext.evaluation.gallery import Gallery, compare_objects
from seg_ext.visualize import Objects

NAME = "gallery_toy"


class Page(HTMLParser):
    """Texts by tag, and the targets of links and pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.text = (folder / "index.html").read_text()
        self.urls: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self._tag = ""
        self.feed(self.text)
        self.pictures = {unquote(url) for url in self.urls if not url.startswith("#")}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.urls += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._tag, []).append(data)

    def handle_endtag(self, tag: str) -> None:
        self._tag = "h3" if tag == "b" else ""


@pytest.fixture
def catalog() -> Iterator[list[dict[str, Any]]]:
    """The records of a registered data set; a test adds its own."""
    records: list[dict[str, Any]] = []
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        stuff_classes=["ground", "tree"],
        stuff_colors=[(9, 9, 9), (0, 200, 0)],
        thing_classes=["cell"],
        ignore_label=255,
    )
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def image_file(path: Path, *, size: tuple[int, int] = (20, 24)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), 120, np.uint8))
    return str(path)


def semantic_case(path: Path, wrong: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record of one class, and an output of which the given share is another one."""
    name = image_file(path)
    label = path.with_suffix(".label.png")
    cv2.imwrite(str(label), np.zeros((20, 24), np.uint8))
    pred = torch.zeros(20, 24, dtype=torch.int64)
    pred.view(-1)[: round(wrong * 480)] = 1
    return {"file_name": name, "image_id": name, "sem_seg_file_name": str(label)}, {"sem_seg_labels": pred}


def square(y: int, x: int, side: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def instance_case(
    path: Path, truth: list[np.ndarray], guess: list[np.ndarray], scores: list[float], *, crowd: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    annotations = [
        {
            "bbox": [0, 0, 1, 1],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "iscrowd": int(index == crowd),
            "segmentation": mask_util.encode(np.asfortranarray(mask.astype(np.uint8))),
        }
        for index, mask in enumerate(truth)
    ]
    record = {"file_name": image_file(path, size=(60, 80)), "height": 60, "width": 80, "annotations": annotations}
    found = Instances((60, 80), scores=torch.tensor(scores), pred_classes=torch.zeros(len(guess), dtype=torch.long))
    found.pred_masks = torch.from_numpy(np.array(guess, bool).reshape(-1, 60, 80))
    found.pred_boxes = Boxes(torch.zeros(len(guess), 4))
    return record, {"instances": found}


def shown(gallery: Gallery, cases: list[tuple[dict[str, Any], dict[str, Any]]], folder: Path) -> Page:
    for record, output in cases:
        gallery.process([{"file_name": record["file_name"]}], [output])
    assert gallery.evaluate() == {}
    return Page(folder)


def pngs(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"index.html"}


def stands_alone(page: Page) -> bool:
    return not re.search(r"https?:|//|@import|<script|<link|url\(", page.text.replace("<!DOCTYPE html>", ""))


def listed(page: Page) -> list[str]:
    """The heads of the page's tasks and images, in its order."""
    return [text for text in page.texts["h3"] if text.strip()]


@pytest.mark.parametrize("order", [1, -1, 3])
def test_the_worst_come_first_and_only_their_pictures_stay(catalog: list[Any], tmp_path: Path, order: int) -> None:
    cases = [semantic_case(tmp_path / f"{i:02d}.png", i / 20) for i in range(14)]
    catalog += [record for record, _ in cases]
    mixed = cases[::order] if abs(order) == 1 else [cases[i * order % 14] for i in range(14)]
    folder = tmp_path / "out"
    gallery = Gallery(NAME, folder, limit=5)
    for record, output in mixed:
        gallery.process([{"file_name": record["file_name"]}], [output])
        assert len(pngs(folder)) <= 15
    gallery.evaluate()
    page = Page(folder)
    assert listed(page) == ["13.png", "12.png", "11.png", "10.png", "09.png"]
    assert page.texts["span"] == ["mIoU 0.35", "mIoU 0.40", "mIoU 0.45", "mIoU 0.50", "mIoU 0.55"]
    assert page.pictures == pngs(folder) and len(page.pictures) == 15
    assert "5 worst of 14 images" in page.text


@pytest.mark.parametrize("order", [1, -1, 3])
def test_the_best_follow_the_worst_and_none_is_shown_twice(catalog: list[Any], tmp_path: Path, order: int) -> None:
    cases = [semantic_case(tmp_path / f"{i:02d}.png", i / 20) for i in range(8)]
    catalog += [record for record, _ in cases]
    mixed = cases[::order] if abs(order) == 1 else [cases[i * order % 8] for i in range(8)]
    page = shown(Gallery(NAME, tmp_path / "out", limit=3, best=2), mixed, tmp_path / "out")
    assert listed(page) == ["07.png", "06.png", "05.png", "00.png", "01.png"]
    assert "2 best images" in page.text and page.pictures == pngs(tmp_path / "out") and len(page.pictures) == 15
    page = shown(Gallery(NAME, tmp_path / "out", limit=7, best=3), mixed, tmp_path / "out")
    assert listed(page)[-2:] == ["01.png", "00.png"] and "1 best images" in page.text
    assert page.pictures == pngs(tmp_path / "out") and len(page.pictures) == 24


def test_pictures_of_an_unfinished_evaluation_are_apart_and_can_be_discarded(
    catalog: list[Any], tmp_path: Path
) -> None:
    first, second = (semantic_case(tmp_path / f"{i}.png", i / 4) for i in (1, 2))
    catalog += [first[0], second[0]]
    gallery = Gallery(NAME, tmp_path / "out")
    shown(gallery, [first], tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    gallery.reset()
    gallery.process([first[0], second[0]], [first[1], second[1]])
    assert len(pngs(tmp_path / "out")) > len(before)
    gallery.discard()
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_the_page_stands_alone(catalog: list[Any], tmp_path: Path) -> None:
    cases = [instance_case(tmp_path / "a.png", [square(5, 5, 20)], [square(30, 40, 20)], [0.9])]
    catalog += [record for record, _ in cases]
    page = shown(Gallery(NAME, tmp_path / "out"), cases, tmp_path / "out")
    assert page.pictures == pngs(tmp_path / "out")
    anchors = set(re.findall(r' id="([^"]+)"', page.text))
    assert {url[1:] for url in page.urls if url.startswith("#")} <= anchors
    assert stands_alone(page)
    assert "prefers-color-scheme: dark" in page.text and 'name="viewport"' in page.text
    for name in page.pictures:
        assert cv2.imread(str(tmp_path / "out" / name)) is not None


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "toy <i>&"
    MetadataCatalog.get(name).set(stuff_classes=["<u>", "b"], thing_classes=["<s>", "t"], stuff_colors=[(0, 0, 9)] * 2)
    try:
        record, output = semantic_case(tmp_path / 'x <b> "&%41.png', 0.5)
        objects, found = instance_case(tmp_path / 'x <b> "&%41.png', [square(5, 5, 9)], [], [])
        record |= {k: objects[k] for k in ("annotations", "height", "width")}
        cv2.imwrite(record["sem_seg_file_name"], np.zeros((60, 80), np.uint8))
        output = {"sem_seg_labels": torch.zeros(60, 80, dtype=torch.int64), **found}
        gallery = Gallery(name, tmp_path / "out")
        gallery.process([record], [output])
        gallery.evaluate()
        gallery.write_summary({"<em>": {"a<q>": 1.0, "IoU-<u>": 2.0}})
    finally:
        MetadataCatalog.remove(name)
    page = Page(tmp_path / "out")
    assert listed(page) == ["<em>", 'x <b> "&%41.png'] and page.texts["h1"] == [name]
    assert not re.search(r"<(b> |i>|u>|s>|em>|q>)", page.text)
    assert page.pictures == pngs(tmp_path / "out")


def test_equal_stems_have_their_own_pictures(catalog: list[Any], tmp_path: Path) -> None:
    cases = [semantic_case(tmp_path / folder / "x.png", 0.5) for folder in ("a", "b")]
    catalog += [record for record, _ in cases]
    page = shown(Gallery(NAME, tmp_path / "out"), cases, tmp_path / "out")
    assert listed(page) == ["x.png", "x.png"] and len(pngs(tmp_path / "out")) == 6


def test_an_image_seen_twice_is_shown_once(catalog: list[Any], tmp_path: Path) -> None:
    cases = [instance_case(tmp_path / "a.png", [square(5, 5, 20)], [square(30, 40, 20)], [0.9])] * 2
    catalog += [record for record, _ in cases[:1]]
    page = shown(Gallery(NAME, tmp_path / "out"), cases, tmp_path / "out")
    assert listed(page) == ["a.png"] and page.pictures == pngs(tmp_path / "out")


def test_a_file_name_that_is_no_utf8_is_shown_as_well_as_can_be(catalog: list[Any], tmp_path: Path) -> None:
    record, output = semantic_case(tmp_path / "a.png", 0.5)
    strange = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.png"))
    os.rename(record["file_name"], strange)
    catalog.append({**record, "file_name": strange})
    page = shown(Gallery(NAME, tmp_path / "out"), [(catalog[0], output)], tmp_path / "out")
    assert listed(page) == ["caf?.png"] and page.pictures == pngs(tmp_path / "out")


def test_boxes_alone_are_counted_but_not_shown(catalog: list[Any], tmp_path: Path) -> None:
    record, output = instance_case(tmp_path / "a.png", [square(5, 5, 20)], [square(5, 5, 20)], [0.9])
    output["instances"].remove("pred_masks")
    page = shown(Gallery(NAME, tmp_path / "out"), [(record, output)], tmp_path / "out")
    assert "0 worst of 1 images" in page.text and pngs(tmp_path / "out") == set()


def test_ground_truth_may_come_with_the_input_and_may_be_missing(tmp_path: Path) -> None:
    (record, output), (_, other) = (semantic_case(tmp_path / name, 0.5) for name in ("a.png", "b.png"))
    gallery = Gallery("gallery of no set", tmp_path / "out")
    gallery.process([{"file_name": str(tmp_path / "b.png")}, record], [other, output])
    gallery.evaluate()
    MetadataCatalog.remove("gallery of no set")
    page = Page(tmp_path / "out")
    assert listed(page) == ["a.png", "b.png"] and page.texts["span"] == ["mIoU 0.50", "not scored"]
    assert len(pngs(tmp_path / "out")) == 5


def test_the_ignored_id_in_a_prediction_is_wrong_however_great_it_is(catalog: list[Any], tmp_path: Path) -> None:
    MetadataCatalog.get(NAME).__dict__["ignore_label"] = 65535
    record, output = semantic_case(tmp_path / "a.png", 0.5)
    output["sem_seg_labels"] *= 65535
    catalog.append(record)
    page = shown(Gallery(NAME, tmp_path / "out"), [(record, output)], tmp_path / "out")
    assert page.texts["span"] == ["mIoU 0.50"]


def test_the_score_of_several_tasks_is_their_mean(catalog: list[Any], tmp_path: Path) -> None:
    truth, shifted = square(10, 10, 20), square(10, 14, 20)
    good, found = instance_case(tmp_path / "good.png", [truth], [truth], [0.9])
    bad, lost = instance_case(tmp_path / "bad.png", [truth, square(40, 60, 10)], [shifted], [0.9])
    info = [{"id": 3, "isthing": True, "category_id": 0, "iscrowd": 0}]
    for record, output, mask in ((good, found, truth), (bad, lost, shifted)):
        colored = np.zeros((60, 80, 3), np.uint8)
        colored[truth] = (0, 0, 3)
        label = Path(record["file_name"]).with_suffix(".label.png")
        png = label.with_suffix(".pan.png")
        cv2.imwrite(str(png), colored)
        cv2.imwrite(str(label), np.where(truth, 1, 255).astype(np.uint8))
        record |= {"pan_seg_file_name": str(png), "segments_info": info, "sem_seg_file_name": str(label)}
        ids = torch.from_numpy(np.where(mask, 8, 0).astype(np.int32))
        output |= {"panoptic_seg": (ids, [{**info[0], "id": 8}]), "sem_seg_labels": torch.from_numpy(mask.astype(int))}
        catalog.append(record)
    page = shown(Gallery(NAME, tmp_path / "out"), [(good, found), (bad, lost)], tmp_path / "out")
    assert listed(page) == ["bad.png", "good.png"]
    assert page.texts["span"][:6] == ["mIoU 0.80", "F1 0.67", "PQ 0.80", "mIoU 1.00", "F1 1.00", "PQ 1.00"]
    assert [text.strip() for text in page.texts["p"] if text.strip()][:3] == ["Semantic", "Instance", "Panoptic"]


def test_stuff_and_things_of_one_number_are_other_classes(catalog: list[Any], tmp_path: Path) -> None:
    name = image_file(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "p.png"), np.full((20, 24, 3), (0, 0, 5), np.uint8))
    info = {"id": 5, "isthing": True, "category_id": 0, "iscrowd": 0}
    catalog.append({"file_name": name, "pan_seg_file_name": str(tmp_path / "p.png"), "segments_info": [info]})
    output = {"panoptic_seg": (torch.full((20, 24), 5, dtype=torch.int32), [{**info, "isthing": False}])}
    page = shown(Gallery(NAME, tmp_path / "out"), [(catalog[0], output)], tmp_path / "out")
    assert page.texts["span"] == ["PQ 0.00"]


def objects(*masks: np.ndarray, classes: list[int] | None = None, crowd: np.ndarray | None = None) -> Objects:
    stack = np.array(masks, bool).reshape(-1, 60, 80)
    return Objects(stack, np.array(classes or [0] * len(masks), int), crowd=crowd)


def test_objects_match_once_within_their_class() -> None:
    first, second = square(0, 0, 20), square(30, 30, 20)
    near, double = square(0, 2, 20), square(0, 1, 20)
    f1, best, alarms = compare_objects(objects(first, second), objects(near, double))
    assert f1 == pytest.approx(2 / (2 + 1 + 1)) and alarms.tolist() == [0]
    assert best.tolist() == pytest.approx([19 / 21, 0])
    f1, best, alarms = compare_objects(objects(first), objects(first, classes=[1]))
    assert f1 == 0 and best.tolist() == [0] and alarms.tolist() == [0]


def test_the_best_attempt_at_an_object_is_no_false_alarm_but_still_wrong() -> None:
    f1, best, alarms = compare_objects(objects(square(0, 0, 20)), objects(square(0, 10, 20), square(40, 40, 9)))
    assert f1 == 0 and best.tolist() == pytest.approx([1 / 3]) and alarms.tolist() == [1]


def test_predictions_in_a_crowd_do_not_count() -> None:
    crowd = square(30, 30, 30)
    found = objects(square(0, 0, 20), square(31, 31, 10), square(31, 20, 10))
    f1, _, alarms = compare_objects(objects(square(0, 0, 20), crowd=crowd), found)
    assert f1 == pytest.approx(2 / 3) and alarms.tolist() == [2]


@pytest.mark.parametrize(("truth", "guess", "f1"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
def test_f1_of_nothing(truth: int, guess: int, f1: float) -> None:
    mask = square(3, 3, 9)
    assert compare_objects(objects(*[mask] * truth), objects(*[mask] * guess))[0] == f1


def test_the_worst_objects_are_missed_ones_poor_ones_and_sure_false_alarms(catalog: list[Any], tmp_path: Path) -> None:
    first = instance_case(
        tmp_path / "a.png",
        [square(0, 0, 20), square(0, 40, 10)],
        [square(0, 10, 20), square(40, 40, 9), square(40, 60, 9)],
        [0.9, 0.7, 0.3],
    )
    second = instance_case(tmp_path / "b.png", [square(20, 20, 30)], [square(0, 60, 12)], [0.99])
    catalog += [first[0], second[0]]
    page = shown(Gallery(NAME, tmp_path / "out"), [first, second], tmp_path / "out")
    captions = [t for t in page.texts["figcaption"] if t not in ("Image", "Ground truth", "Prediction")]
    assert captions == ["missed", "missed", "IoU 0.33", "false alarm 0.99", "false alarm 0.70"]
    assert page.texts["a"][-5:] == ["b.png", "a.png", "a.png", "b.png", "a.png"], "the larger missed one first"
    tile = cv2.imread(str(tmp_path / "out/pictures/object-02.png"))[..., ::-1]
    assert tile.shape == (240, 240, 3)
    assert (tile == (0, 190, 255)).all(2).sum() > 200 and (tile == (255, 145, 0)).all(2).sum() > 200
    missed = cv2.imread(str(tmp_path / "out/pictures/object-00.png"))[..., ::-1]
    assert (missed == (0, 190, 255)).all(2).any() and not (missed == (255, 145, 0)).all(2).any()


def test_objects_are_24_at_most_half_of_them_for_each_kind_that_has_as_many(catalog: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = []
    for index in range(6):
        truth = [square(0, 12 * i, 9) for i in range(6)]
        guess = [square(30, 12 * i, 4) for i in range(6)]
        cases.append(instance_case(tmp_path / f"{index}.png", truth, guess, rng.uniform(0.5, 1, 6).tolist()))
    catalog += [record for record, _ in cases]
    page = shown(Gallery(NAME, tmp_path / "out", limit=1), cases, tmp_path / "out")
    captions = [t for t in page.texts["figcaption"] if t not in ("Image", "Ground truth", "Prediction")]
    assert len(captions) == 24 and captions[:12] == ["missed"] * 12
    scores = sorted((s for _, output in cases for s in output["instances"].scores.tolist()), reverse=True)
    assert captions[12:] == [f"false alarm {score:.2f}" for score in scores[:12]]
    only_missed = [(record, instance_case(tmp_path / "x.png", [], [], [])[1]) for record, _ in cases]
    gallery = Gallery(NAME, tmp_path / "out", limit=1)
    captions = [t for t in shown(gallery, only_missed, tmp_path / "out").texts["figcaption"] if t == "missed"]
    assert len(captions) == 24


def test_the_summary_shows_numbers_and_a_dash_for_nan(catalog: list[Any], tmp_path: Path) -> None:
    case = semantic_case(tmp_path / "a.png", 0.5)
    catalog.append(case[0])
    gallery = Gallery(NAME, tmp_path / "out")
    path = gallery.write_summary({"sem_seg": {"mIoU": 1.0}})
    assert path == tmp_path / "out/index.html" and not path.exists(), "nothing to show yet"
    assert "Results" not in shown(gallery, [case], tmp_path / "out").text
    results = {"mIoU": 12.345, "pACC": float("nan"), "IoU-tree": 5.0, "IoU-a-b": 6.5, "ACC-tree": float("nan")}
    results["min(IoU, B-Iou)-a-b"] = 4.0
    results["KeptACC-variance@90"] = 7.0  # of no class
    assert gallery.write_summary({"sem_seg": results}) == path
    page = Page(tmp_path / "out")
    assert page.texts["th"] == ["mIoU", "pACC", "KeptACC-variance@90", "IoU", "ACC", "min(IoU, B-Iou)"]
    assert page.texts["td"] == ["12.35", "–", "7.00", "tree", "5.00", "–", "–", "a-b", "6.50", "–", "4.00"]
    assert "2 classes" in page.text and listed(page) == ["sem_seg", "a.png"]


def test_figures_and_pictures_stand_between_results_and_images(catalog: list[Any], tmp_path: Path) -> None:
    case = semantic_case(tmp_path / "a.png", 0.5)
    catalog.append(case[0])
    gallery = Gallery(NAME, tmp_path / "out")
    shown(gallery, [case], tmp_path / "out")
    results = {"sem_seg": {"IoU-<tree>": 25.0, "IoU-car": 75.5, "IoU-boat": float("nan"), "BF-car": 1.0}}
    results["sem_seg"] |= {"TrimapIoU@1": 40.0, "TrimapIoU@40": 60.0}
    precision = np.full((10, 101, 2), -1.0)
    precision[:, :, 0] = np.linspace(1, 0.5, 101)
    figures = bars_html(results) | curves_html({"segm": precision, "bbox": np.full((10, 101, 2), -1.0)})
    picture = confusion_picture(np.array([[3, 1, 0], [0, 0, 0]]), ["ground", "tree"])
    gallery.write_summary(results, figures=figures, pictures={"Confusion matrix": picture})
    page = Page(tmp_path / "out")
    heads = [
        "sem_seg",
        "IoU of the classes (sem_seg)",
        "mIoU near boundaries (sem_seg)",
        "Precision and recall (segm)",
        "Confusion matrix",
        "a.png",
    ]
    assert listed(page) == heads, "boxes have no ground truth, so no curve"
    bars = re.findall(r'<span title="([^"]*)">.*?width:([\d.]+)%.*?<em>(.*?)</em>', page.text)
    assert bars[:3] == [("car", "75.50", "75.50"), ("&lt;tree&gt;", "25.00", "25.00"), ("boat", "0.00", "–")]
    assert bars[3:] == [("within 1 px", "40.00", "40.00"), ("within 40 px", "60.00", "60.00")]
    points = re.findall(r'points="([^"]+)"', page.text)[0].split()
    assert (points[0], points[-1]) == ("40.0,10.0", "340.0,160.0") and "IoU 0.50: 75.00" in page.text
    assert stands_alone(page) and page.pictures == pngs(tmp_path / "out")


@pytest.mark.parametrize("count", [2, 26, 150])
def test_a_confusion_matrix_is_drawn_of_few_and_of_many_classes(count: int) -> None:
    confusion = np.diag(np.arange(1, count + 1))
    picture = confusion_picture(np.pad(confusion, ((0, 0), (0, 1))), [f"class {'x' * 40} {i}" for i in range(count)])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and 400 < picture.shape[0] < 3000
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 60).mean()
    assert blue > 0.1 / count, "the diagonal is full"


def test_an_earlier_gallery_is_replaced_and_foreign_files_stay(catalog: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = [instance_case(tmp_path / "a.png", [square(5, 5, 20)], [square(30, 40, 20)], [0.9])]
    second = [semantic_case(tmp_path / "b.png", 0.5)]
    catalog += [first[0][0], second[0][0]]
    gallery = Gallery(NAME, folder)
    assert len(shown(gallery, first, folder).pictures) == 5
    (folder / "pictures" / "mine.png").write_bytes(b"")
    gallery.reset()
    page = shown(gallery, second, folder)
    assert listed(page) == ["b.png"] and pngs(folder) == page.pictures | {"pictures/mine.png"}


def test_two_processes_show_what_one_shows(catalog: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    cases = []
    for index in range(8):
        y, x, gap = rng.integers(0, 30, 3).tolist()
        truth, guess = [square(y, x, 20), square(40, 60, 9)], [square(y, x + gap // 2, 20), square(0, 70, 5)]
        cases.append(instance_case(tmp_path / f"{index}.png", truth, guess, rng.uniform(0.5, 1, 2).tolist()))
    catalog += [record for record, _ in cases]
    one = shown(Gallery(NAME, tmp_path / "one", limit=3), cases, tmp_path / "one")
    first, second = (Gallery(NAME, tmp_path / "two", limit=3) for _ in range(2))
    for gallery, part in ((first, cases[::2]), (second, cases[1::2])):
        for record, output in part:
            gallery.process([{"file_name": record["file_name"]}], [output])
    sent: list[Any] = []
    monkeypatch.setattr(comm, "gather", lambda data: sent.append(data) or [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    second.evaluate()
    assert not (tmp_path / "two/index.html").exists()
    second.write_summary({"segm": {"AP": 1.0}})
    assert not (tmp_path / "two/index.html").exists()
    monkeypatch.setattr(comm, "gather", lambda data: [data, *sent])
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    first.evaluate()
    two = Page(tmp_path / "two")
    assert two.text == one.text and pngs(tmp_path / "two") == pngs(tmp_path / "one") == two.pictures
    for name in one.pictures:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    name = image_file(tmp_path / "a.png", size=(2000, 50))
    gallery = Gallery("gallery of no set", tmp_path / "out")
    gallery.process([{"file_name": name}], [{"sem_seg_labels": torch.zeros(2000, 50, dtype=torch.int64)}])
    gallery.evaluate()
    MetadataCatalog.remove("gallery of no set")
    for path in (tmp_path / "out/pictures").iterdir():
        assert cv2.imread(str(path)).shape == (1600, 40, 3)


def test_no_image_still_gives_a_page(catalog: list[Any], tmp_path: Path) -> None:
    page = shown(Gallery(NAME, tmp_path / "out"), [], tmp_path / "out")
    assert "0 worst of 0 images" in page.text and pngs(tmp_path / "out") == set()


def test_in_a_chain_it_gives_no_scores(catalog: list[Any], tmp_path: Path) -> None:
    record, output = semantic_case(tmp_path / "a.png", 0.5)
    catalog.append(record)
    chain = DatasetEvaluators([Gallery(NAME, tmp_path / "out")])
    chain.reset()
    chain.process([record], [output])
    assert chain.evaluate() == {}


def test_bad_input_names_the_image(catalog: list[Any], tmp_path: Path) -> None:
    gallery = Gallery(NAME, tmp_path / "out")
    record, output = semantic_case(tmp_path / "a.png", 0.5)
    catalog.append(record)
    with pytest.raises(UserError, match=r"file_name of every input.*\['image_id'\]"):
        gallery.process([{"image_id": 1}], [output])
    with pytest.raises(UserError, match="^[^:]*a.png: .*shape"):
        gallery.process([record], [{"sem_seg_labels": torch.zeros(9, 9, dtype=torch.int64)}])
    with pytest.raises(UserError, match="^[^:]*a.png: .*has 0..1$"):
        gallery.process([record], [{"sem_seg_labels": torch.full((20, 24), 7)}])
    with pytest.raises(UserError, match="^[^:]*gone.png: no such file$"):
        gallery.process([{"file_name": str(tmp_path / "gone.png")}], [output])
    for numbers in ({"limit": 0}, {"best": -1}):
        with pytest.raises(UserError, match="takes 1 or more"):
            Gallery(NAME, tmp_path / "out", **numbers)
