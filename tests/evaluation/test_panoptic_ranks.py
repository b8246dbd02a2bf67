"""Every evaluator on two and three gloo processes gives the numbers of one; this file is their program too."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image

from seg_ext.evaluation import EVALUATORS, InstanceEvaluator

NAME, IMAGES, SIZE = "toy_ranks", 5, (16, 24)
POINTS = [[3.5, 4.5, 2], [6.5, 3.5, 2], [7.5, 7.5, 1]]
OPTIONS = {
    "tasks": ("bbox", "segm", "keypoints"),
    "metrics": ("coco", "boundary", "voc", "tide"),
    "kpt_oks_sigmas": (0.1, 0.2, 0.1),
}


def write_and_register(folder):
    """A panoptic set: two things side by side above one stuff class, with void around them."""
    records, annotations = [], []
    for i in range(IMAGES):
        ids = np.zeros(SIZE, np.uint8)
        ids[2:8, 2:9], ids[2:8, 12 : 17 + i], ids[10:, :] = 1, 2, 3
        Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=-1)).save(folder / f"{i}.png")
        Image.fromarray(np.array([255, 1, 2, 0], np.uint8)[ids]).save(folder / f"label{i}.png")
        segments = [{"id": s, "category_id": c, "iscrowd": 0} for s, c in ((1, 10), (2, 20), (3, 30))]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        objects = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "segmentation": [corners(box)], "iscrowd": 0}
            for c, box in enumerate(([2, 2, 9, 8], [12, 2, 17 + i, 8]))
        ]
        for thing in objects:
            thing["keypoints"] = np.ravel(POINTS).tolist()
        record = {"file_name": f"{i}.jpg", "image_id": i, "height": SIZE[0], "width": SIZE[1], "annotations": objects}
        records.append({**record, "sem_seg_file_name": str(folder / f"label{i}.png")})
    (folder / "panoptic.json").write_text(json.dumps({"annotations": annotations}))
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        thing_classes=["a", "b"],
        stuff_classes=["ground", "a", "b"],
        thing_dataset_id_to_contiguous_id={10: 0, 20: 1},
        stuff_dataset_id_to_contiguous_id={30: 0, 10: 1, 20: 2},
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder),
    )
    return records


def corners(box):
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def predicted(i):
    """Three segments, off by a few columns that depend on the image, in the three forms of a panoptic model."""
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[2:8, 2 + i : 9 + i], ids[2:8, 13:20], ids[10:, i:] = 1, 2, 3
    found = Instances(SIZE)
    found.pred_boxes = Boxes(torch.tensor([[2.0 + i, 2, 9 + i, 8], [13, 2, 20, 8]]))
    found.scores, found.pred_classes = torch.tensor([0.9 - 0.1 * i, 0.7]), torch.tensor([0, 1])
    found.pred_masks = torch.stack([ids == 1, ids == 2])
    found.pred_keypoints = torch.tensor([POINTS, POINTS]) + 0.2 * i * torch.tensor([1, 1, 0])
    segments = [{"id": s, "isthing": s < 3, "category_id": (s - 1) % 2} for s in (1, 2, 3)]
    return {
        "sem_seg": torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0])[ids], 3).permute(2, 0, 1).float(),
        "instances": found,
        "panoptic_seg": (ids, segments),
    }


def scores(records, share, **kwargs):
    evaluators = [
        evaluator(NAME, **kwargs, **(OPTIONS if evaluator is InstanceEvaluator else {}))
        for evaluator in EVALUATORS["coco_panoptic_seg"]
    ]
    for i in share:
        for evaluator in evaluators:
            evaluator.process([records[i]], [predicted(i)])
    return {task: result for evaluator in evaluators for task, result in evaluator.evaluate().items()}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    records = write_and_register(folder / str(rank))
    for world in (3, 2):
        if rank < world:
            store = f"file://{folder / f'store{world}'}"
            torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
            result = scores(records, range(IMAGES)[rank::world])
            (folder / f"rank{rank}of{world}.json").write_text(json.dumps(result))
            comm.synchronize()
            torch.distributed.destroy_process_group()
            comm._get_global_gloo_group.cache_clear()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one process scores, and what each of two and of three does, by their number."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("0", "1", "2", "one"):
        (folder / name).mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ranks = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    one = scores(write_and_register(folder / "one"), range(IMAGES))
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    _, errors = ranks.communicate(timeout=400)
    assert ranks.returncode == 0, errors
    return one, {
        world: [json.loads((folder / f"rank{rank}of{world}.json").read_text()) for rank in range(world)]
        for world in (2, 3)
    }


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_score_as_one(both, world):
    one, (first, *_) = both[0], both[1][world]
    regions = {f"{task}_{metric}" for task in ("bbox", "segm") for metric in ("voc", "tide")}
    assert one.keys() == first.keys() == {"sem_seg", "bbox", "segm", "keypoints", "boundary", "panoptic_seg"} | regions
    for task, result in one.items():
        assert result.keys() == first[task].keys()
        assert 0 < next(iter(result.values())) < 100
        for key, value in result.items():
            np.testing.assert_allclose(first[task][key], value, rtol=0, atol=1e-12, err_msg=f"{task} {key}")


@pytest.mark.parametrize("world", [2, 3])
def test_only_the_main_process_has_scores(both, world):
    assert both[1][world][1:] == [{}] * (world - 1)


if __name__ == "__main__":  # forks after the imports, which take longer than the rest
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run_rank, args=(rank, Path(sys.argv[1]))) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
