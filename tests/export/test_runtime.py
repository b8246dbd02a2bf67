"""The runtime: labels as the predictor's from NumPy and ONNX Runtime alone, resized as the loader resizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from seg_ext import Predictor
from seg_ext.data.augmentation import ResizeShortestEdge
from seg_ext.data.transforms import WindowTransform

runtime = pytest.importorskip("seg_ext.runtime", reason="needs the extra `export`")

BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "detectron2", "cv2", "scipy", "onnx") or name == "seg_ext.errors":
            raise ModuleNotFoundError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
from seg_ext.runtime import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def predictor(run_folder: Path) -> Predictor:
    return Predictor(run_folder / "model_final.pth")


@pytest.fixture(scope="module")
def segmenter(onnx_file: Path) -> Any:
    return runtime.Segmenter(onnx_file, threads=1)


def test_without_torch_and_detectron2_an_image_gets_the_labels_of_predict(
    predictor: Predictor, onnx_file: Path, toy_folder: Path, tmp_path: Path
) -> None:
    image = toy_folder / "images" / "1.png"
    command = [sys.executable, "-c", BLOCKED, str(onnx_file), str(image), str(tmp_path / "labels.npy")]
    subprocess.run(command, check=True)
    labels = np.load(tmp_path / "labels.npy")
    expected = predictor(image)["sem_seg"].argmax(0).numpy()
    assert 0 < expected.mean() < 1 and labels.shape == (48, 40)
    assert (labels == expected).mean() > 0.999


@pytest.mark.parametrize(("height", "width"), [(150, 100), (30, 200), (64, 64)])
def test_arrays_get_the_labels_and_scores_of_predict_whether_they_are_shrunk_or_enlarged(
    predictor: Predictor, segmenter: Any, height: int, width: int
) -> None:
    image = cv2.resize(np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8), (width, height))
    expected = predictor(image)["sem_seg"].numpy()
    assert (segmenter(image) == expected.argmax(0)).mean() > 0.995
    scores = segmenter.scores(image)
    assert scores.shape == expected.shape and np.abs(scores - expected).max() < 0.05
    assert (scores.argmax(0) == segmenter(image)).all()


@pytest.mark.parametrize(("old", "new"), [((60, 80), (30, 40)), ((61, 47), (100, 90)), ((50, 90), (70, 33))])
def test_images_are_resized_to_a_grey_level_of_what_the_loader_makes_of_them(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = WindowTransform(old, new).apply_image(image).astype(int)
    found = runtime._resized(image, new).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (100, 1000), (333, 333), (1, 3000)])
def test_the_shorter_side_is_set_as_the_loader_sets_it(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    expected = ResizeShortestEdge([300], 500).get_transform(image).apply_image(image).shape[:2]
    assert tuple(runtime._shortest(shape, {"shortest": 300, "longest": 500})) == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\); takes \(H, W, 3\), BGR"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\); takes"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\); takes"),
        (np.zeros((8, 8, 3), np.float64), "float64; takes uint8, or float32"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(segmenter: Any, image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(image)


def test_files_that_are_not_ours_are_refused(segmenter: Any, tmp_path: Path, onnx_file: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bare = onnx.load(str(onnx_file))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "text.png").write_text("no image")
    for name, message in {"none": "no such file", "text": "not an ONNX file", "bare": "says nothing of"}.items():
        with pytest.raises(ValueError, match=message):
            runtime.Segmenter(tmp_path / f"{name}.onnx")
    (tmp_path / "empty.npy").touch()
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    for name, message in {"text.png": "an image", "empty.npy": "an array", "none.npy": "an array"}.items():
        with pytest.raises(ValueError, match=f"{name}: cannot be read as {message}"):
            segmenter(tmp_path / name)
    with pytest.raises(ValueError, match="deep.png: more than 8 bits a pixel"):
        segmenter(tmp_path / "deep.png")
    assert runtime.main([str(onnx_file), str(tmp_path / "text.png"), str(tmp_path / "labels")]) == 2
    assert not list(tmp_path.glob("labels*"))
