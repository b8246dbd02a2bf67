"""Memory while 500 images are evaluated: flat for panoptic maps, run lengths alone for instances."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

IMAGES, SIZE, OBJECTS = 500, (192, 192), 8
NAME = "toy_memory"


def resident():
    """Bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(folder):
    """Print by how much the memory grows from image 100 to 500, for either evaluator."""
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import Boxes, Instances
    from PIL import Image

    from seg_ext.evaluation import InstanceEvaluator, PanopticEvaluator

    torch.set_num_threads(1)
    ids = np.arange(1, 17, dtype=np.uint8).reshape(4, 4).repeat(48, 0).repeat(48, 1)
    Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=-1)).save(folder / "truth.png")
    segments = [{"id": i, "category_id": 1} for i in range(1, 17)]
    truth = [{"image_id": i, "file_name": "truth.png", "segments_info": segments} for i in range(IMAGES)]
    (folder / "truth.json").write_text(json.dumps({"annotations": truth}))
    records = [{"image_id": i, "file_name": f"{i}.jpg", "height": 192, "width": 192} for i in range(IMAGES)]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        thing_classes=["a"],
        stuff_classes=["a"],
        thing_dataset_id_to_contiguous_id={1: 0},
        panoptic_json=str(folder / "truth.json"),
        panoptic_root=str(folder),
    )
    rng, grown = np.random.default_rng(0), []
    for evaluator in (PanopticEvaluator(NAME), InstanceEvaluator(NAME)):
        for record in records:
            if record["image_id"] == 100:
                before = resident()
            shifted = np.roll(ids, rng.integers(-40, 40, 2), axis=(0, 1))
            found = Instances(SIZE)
            found.pred_masks = torch.from_numpy(np.arange(1, OBJECTS + 1)[:, None, None] == shifted)
            found.pred_boxes = Boxes(torch.zeros(OBJECTS, 4))
            found.scores, found.pred_classes = torch.ones(OBJECTS), torch.zeros(OBJECTS, dtype=torch.int64)
            kinds = [{"id": i, "category_id": 0, "isthing": True} for i in range(1, 17)]
            evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(shifted), kinds), "instances": found}])
        grown.append(resident() - before)
        assert evaluator.evaluate()
    print(json.dumps(grown))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell the resident memory")
def test_memory_does_not_grow_with_the_images(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    panoptic, instance = json.loads(done.stdout.splitlines()[-1])
    assert panoptic < 2**20  # one map of ids takes 0.14 MiB, all 400 take 56
    assert instance < 400 * OBJECTS * 512  # a mask of 192x192 takes 36,864 bytes


if __name__ == "__main__":
    run(Path(sys.argv[1]))
