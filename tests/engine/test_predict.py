"""Predicted files: what a stub says of each input comes out whole, at its size, once, however the run is cut."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image

from seg_ext.config import get_cfg
from seg_ext.data.augmentation import ResizeShortestEdge
from seg_ext.data.label_io import read_label
from seg_ext.data.mapper import SegMapper
from seg_ext.engine.predict import Shard, predict_sources
from seg_ext.errors import UserError
from seg_ext.inference.sources import find_sources

KINDS = ("labels", "ids", "overlay", "json", "geojson", "probabilities")


class Stub:
    """Says "bright" where the mean of a pixel's bands is above 100, surely; and one instance, the bright pixels."""

    def __init__(self, format: str = "BGR", bands: int = 3) -> None:
        self.mapper = SegMapper(False, augmentations=[], image_format=format, bands=bands)
        self.metadata = Metadata(name="stub", stuff_classes=["dark", "bright"], thing_classes=["lamp"])
        self.config = get_cfg()
        self.batches: list[int] = []
        self.interrupt_at = -1

    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert len({x["image"].shape for x in inputs}) == 1
        if len(self.batches) == self.interrupt_at:
            raise KeyboardInterrupt
        self.batches.append(len(inputs))
        return [self._predict(x["image"].float().mean(0) > 100) for x in inputs]

    def _predict(self, bright: torch.Tensor) -> dict[str, Any]:
        if bright.shape == (7, 7):
            raise RuntimeError("Calculated padded input size per channel: (7 x 7)\nand more")
        height, width = bright.shape
        found = Instances((height, width), pred_masks=bright[None])
        found.pred_boxes, found.scores = Boxes(torch.tensor([[0.0, 0, width, height]])), torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        return {"sem_seg": torch.stack([~bright, bright]).float() * 20, "instances": found}


def picture(seed: int = 0, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """RGB, a bright upper left quarter."""
    image = np.random.default_rng(seed).integers(0, 50, (*size, 3), dtype=np.uint8)
    image[: size[0] // 2, : size[1] // 2] += 150
    return image


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for index in range(count):
        Image.fromarray(picture(index, (12, 16 + index % 2))).save(path / f"{index}.png")
    return path


def predicted(inputs: Sequence[Any], output: Path, stub: Stub | None = None, **options: Any) -> Any:
    sources = find_sources([str(x) for x in inputs])
    options = {"save": ("labels", "json"), "report": lambda line: None, "threads": 1} | options
    return predict_sources(stub or Stub(), sources, output, **options)  # type: ignore[arg-type]


def tree(root: Path) -> dict[str, bytes]:
    """What files hold, those of the manifest left out."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.parent.name != "manifest"}


def _exif(path: Path, image: np.ndarray) -> None:
    turned = Image.fromarray(np.rot90(image))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(path, exif=exif)


def _rgba(path: Path, image: np.ndarray) -> None:
    Image.fromarray(np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])).save(path)


CHUNKY: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
STORED: dict[str, tuple[str, str, int, Callable[[Path, np.ndarray], Any]]] = {
    "8 bit": ("a.png", "BGR", 3, lambda path, image: Image.fromarray(image).save(path)),
    "16 bit": ("a.tif", "RGB", 3, lambda path, image: tifffile.imwrite(path, image.astype(np.uint16) * 257)),
    "grey": ("a.png", "BGR", 3, lambda path, image: Image.fromarray(image[..., 0]).save(path)),
    "grey for L": ("a.bmp", "L", 1, lambda path, image: Image.fromarray(image[..., 0]).save(path)),
    "RGBA": ("a.png", "RGB", 3, _rgba),
    "5 bands": (
        "a.tif",
        "BANDS",
        5,
        lambda path, image: tifffile.imwrite(path, image[..., [0, 1, 2, 0, 1]], **CHUNKY),
    ),
    "5 pages": (
        "a.tif",
        "BANDS",
        5,
        lambda path, image: tifffile.imwrite(path, np.moveaxis(image[..., [0, 1, 2, 0, 1]], -1, 0)),
    ),
    "float32": ("a.npy", "BANDS", 3, lambda path, image: np.save(path, image.astype(np.float32))),
    "turned by EXIF": ("a.jpg", "BGR", 3, _exif),
}


@pytest.mark.parametrize("stored", STORED)
def test_every_kind_of_file_comes_out_in_the_geometry_of_the_upright_image(tmp_path: Path, stored: str) -> None:
    name, format, bands, write = STORED[stored]
    size = (16, 32)  # whole blocks of JPEG
    write(tmp_path / name, picture(size=size))
    outcome = predicted([tmp_path / name], tmp_path / "out", Stub(format, bands), save=KINDS)
    assert outcome.images == 1 and not outcome.failures
    expected = np.zeros(size, np.uint8)
    expected[:8, :16] = 1
    assert (read_label(tmp_path / "out/labels/a.png") == expected).all()
    assert (read_label(tmp_path / "out/ids/a.png") == expected).all()
    probabilities = np.load(tmp_path / "out/probabilities/a.npy")
    assert probabilities.shape == (2, *size) and (probabilities.argmax(0) == expected).all()
    assert abs(probabilities.sum(0) - 1).max() < 1e-6
    overlay = cv2.imread(str(tmp_path / "out/overlay/a_semantic.png"))
    assert overlay.shape[1] / overlay.shape[0] >= 1, "as wide as the upright image"
    (row,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert (row["height"], row["width"]) == size
    features = json.loads((tmp_path / "out/geojson/a.geojson").read_text())["features"]
    rings = {f["properties"]["task"]: f["geometry"]["coordinates"] for f in features}
    assert rings["instance"] == [[[0, 0], [16, 0], [16, 8], [0, 8], [0, 0]]]


def test_the_pages_of_a_tiff_are_images_and_its_overviews_are_not(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "stack.tif") as tiff:
        for seed in range(3):
            tiff.write(picture(seed), photometric="rgb")
        tiff.write(picture(9)[::2, ::2], photometric="rgb", subfiletype=1)
    assert predicted([tmp_path / "stack.tif"], tmp_path / "out").images == 3
    names = {path.name for path in (tmp_path / "out" / "labels").iterdir()}
    assert names == {f"stack_00000{page}.png" for page in range(3)}


def video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (32, 16))
    for index in range(frames):
        writer.write(picture(index, (16, 32))[..., ::-1])
    writer.release()
    return path


def test_a_video_gives_labels_of_its_frames_and_overlays_as_a_video(tmp_path: Path) -> None:
    save = ("labels", "overlay", "json")
    outcome = predicted([video(tmp_path / "v.avi", 4)], tmp_path / "out", batch_size=2, save=save)
    assert outcome.images == 4
    assert len(list((tmp_path / "out" / "labels").glob("v_00000?.png"))) == 4
    capture = cv2.VideoCapture(str(tmp_path / "out" / "overlay" / "v_semantic.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (4, 5)
    assert capture.read()[1].shape == (320, 640, 3), "enlarged, without a legend"
    rows = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [row["file_name"] for row in rows] == [f"{tmp_path}/v.avi#00000{i}" for i in range(4)]
    again = predicted([tmp_path / "v.avi"], tmp_path / "out", save=save, resume=True)
    assert again.skipped == 1
    assert predicted([tmp_path / "v.avi"], tmp_path / "few", frames=2).images == 2


def test_a_video_that_is_cut_short_leaves_no_part_and_is_done_again(tmp_path: Path) -> None:
    stub = Stub()
    stub.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        predicted([video(tmp_path / "v.avi", 4)], tmp_path / "out", stub, save=["overlay"])
    assert not tree(tmp_path / "out")
    assert predicted([tmp_path / "v.avi"], tmp_path / "out", save=["overlay"], resume=True).images == 4
    assert {path.name for path in (tmp_path / "out" / "overlay").iterdir()} == {"v_instance.mp4", "v_semantic.mp4"}


def test_images_of_one_size_share_batches_and_give_what_single_ones_give(tmp_path: Path) -> None:
    images, stub = folder_of(tmp_path / "in", 7), Stub()
    predicted([images], tmp_path / "one")
    predicted([images], tmp_path / "many", stub, batch_size=3, threads=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    assert sorted(stub.batches) == [1, 3, 3]


def test_a_run_that_is_stopped_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    images, stub = folder_of(tmp_path / "in", 6), Stub()
    predicted([images], tmp_path / "whole")
    stub.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        predicted([images], tmp_path / "cut", stub)
    assert not (tmp_path / "cut" / "predictions.json").exists()
    (manifest,) = (tmp_path / "cut" / "manifest").iterdir()
    done = len(manifest.read_text().splitlines()) - 1
    assert 1 <= done <= 3
    with manifest.open("a") as file:
        file.write('{"input": "a line that a crash cut o')
    rest = Stub()
    outcome = predicted([images], tmp_path / "cut", rest, resume=True)
    assert (outcome.skipped, outcome.images, len(rest.batches)) == (done, 6 - done, 6 - done)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_the_inputs_and_the_last_writes_the_json_of_all(tmp_path: Path, order: Sequence[int]) -> None:
    images = folder_of(tmp_path / "in", 7)
    predicted([images], tmp_path / "one")
    numbers = [predicted([images], tmp_path / "three", shard=Shard(rank, 3)).images for rank in order]
    assert sorted(numbers) == [2, 2, 3]
    assert tree(tmp_path / "three") == tree(tmp_path / "one")


def test_a_run_is_not_resumed_with_other_outputs_or_weights(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "in", 1)
    predicted([images], tmp_path / "out")
    with pytest.raises(UserError, match="of a run with other --save; leave --resume out"):
        predicted([images], tmp_path / "out", save=["ids"], resume=True)
    stub = Stub()
    stub.config.MODEL.WEIGHTS = "others.pth"
    with pytest.raises(UserError, match="of a run with other weights"):
        predicted([images], tmp_path / "out", stub, resume=True)
    assert predicted([images], tmp_path / "out", stub).images == 1


def _truncated(path: Path) -> None:
    Image.fromarray(picture(size=(64, 64))).save(path)
    path.write_bytes(path.read_bytes()[:3000])


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated": ("bad.png", _truncated, "cannot be read"),
    "0 bytes": ("bad.png", lambda path: path.write_bytes(b""), "the file is empty"),
    "text": ("bad.jpg", lambda path: path.write_text("no image"), "not an image"),
    "wrong band count": (
        "bad.tif",
        lambda path: tifffile.imwrite(path, np.zeros((8, 9, 7), np.uint8), **CHUNKY),
        "7 bands",
    ),
    "NaN raster": ("bad.npy", lambda path: np.save(path, np.full((8, 9), np.nan, np.float32)), "float32 pixels"),
    "no video": ("bad.mp4", lambda path: path.write_bytes(b"no video"), "not a video"),
    "a size that the model fails on": (
        "bad.png",
        lambda path: Image.fromarray(picture(size=(7, 7))).save(path),
        "cannot be predicted: RuntimeError: Calculated padded input size per channel: (7 x 7)",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_one_bad_file_is_reported_in_a_line_and_the_rest_done(tmp_path: Path, fault: str) -> None:
    images = folder_of(tmp_path / "in", 3)
    name, write, text = BAD[fault]
    write(images / name)
    lines: list[str] = []
    outcome = predicted([images], tmp_path / "out", report=lines.append, batch_size=2, save=("ids", "json"))
    assert outcome.images == 3 and len(outcome.failures) == 1 and lines == outcome.failures
    assert lines[0].startswith(f"{images / name}: ") and text in lines[0] and "\n" not in lines[0]
    assert (tmp_path / "out" / "failed.txt").read_text() == f"{lines[0]}\n"
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["images"]) == 3
    assert not list((tmp_path / "out").glob("*/bad*"))
    (images / name).unlink()
    Image.fromarray(picture()).save(images / "bad.png")
    if name == "bad.png":
        again = predicted([images], tmp_path / "out", save=("ids", "json"), resume=True)
        assert (again.images, again.skipped, again.failures) == (1, 3, [])
        assert not (tmp_path / "out" / "failed.txt").exists()


def test_nan_in_a_model_of_bands_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.full((8, 9, 3), np.nan, np.float32))
    outcome = predicted([tmp_path / "bad.npy"], tmp_path / "out", Stub("BANDS"))
    assert "holds NaN or infinite pixels" in outcome.failures[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 3000), (3000, 3)])
def test_images_of_any_shape_come_out_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(tmp_path / "a.png")
    assert predicted([tmp_path / "a.png"], tmp_path / "out").images == 1
    assert read_label(tmp_path / "out/labels/a.png").shape == size


def test_a_strip_is_never_resized_to_nothing() -> None:
    mapper = SegMapper(False, augmentations=[ResizeShortestEdge([800], 1333)])
    assert mapper.map_image(np.zeros((30_000, 3, 3), np.uint8))["image"].shape == (3, 1333, 1)
    assert mapper.map_image(np.zeros((3, 30_000, 3), np.uint8))["image"].shape == (3, 1, 1333)


@pytest.mark.parametrize("saved", ["labels", "probabilities", "geojson"])
def test_a_full_disk_ends_the_run_with_one_line_and_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: str
) -> None:
    images = folder_of(tmp_path / "in", 4)
    real, count = os.replace, [0]

    def full(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] > 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        predicted([images], tmp_path / "out", save=[saved])
    assert len(tree(tmp_path / "out")) == 2 and not any(name.startswith(".") for name in os.listdir(tmp_path / "out"))
    monkeypatch.setattr(os, "replace", real)
    assert predicted([images], tmp_path / "out", save=[saved], resume=True).images >= 2
    predicted([images], tmp_path / "whole", save=[saved])
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder_of(tmp_path / "in", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file cannot be written"):
        predicted([images], tmp_path / "file")

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(UserError, match=f"{tmp_path}/out cannot be written: Read-only file system"):
        predicted([images], tmp_path / "out")


def test_a_name_that_is_too_long_for_the_output_fails_alone(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "in", 1)
    Image.fromarray(picture()).save(images / f"{'x' * 246}.png")
    outcome = predicted([images], tmp_path / "out", save=["overlay"])
    assert outcome.images == 1 and "File name too long" in outcome.failures[0]


def test_urls_are_fetched_on_request_alone(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", 1)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "in"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.RequestHandlerClass.func.log_message = lambda *_: None  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match="nothing is fetched from the net unless --allow-urls"):
            find_sources([f"{address}/0.png"])
        sources = find_sources([f"{address}/0.png", f"{address}/none.png"], allow_urls=True)
        stub: Any = Stub()
        outcome = predict_sources(stub, sources, tmp_path / "out", save=["labels"], report=lambda line: None)
        server.shutdown()
    assert outcome.images == 1 and read_label(tmp_path / "out/labels/0.png").shape == (12, 16)
    assert outcome.failures == [f"{address}/none.png: cannot be fetched: HTTP Error 404: File not found"]


def test_a_large_image_is_predicted_in_windows_where_it_lies_on_the_map(tmp_path: Path) -> None:
    image, place = picture(size=(70, 90)), (33922, "d", 6, (0.0, 0.0, 0.0, 400000.0, 5000000.0, 0.0), True)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(16, 16), extratags=[place])
    stub = Stub("RGB")
    stub.config.TEST.SLIDING_WINDOW.SIZE = [32, 32]
    outcome = predicted([tmp_path / "a.tif"], tmp_path / "one", stub, large=0.005, save=["labels"])
    assert (outcome.images, outcome.failures) == (1, []) and (once := len(stub.batches)) > 1
    kinds = ["labels", "ids", "probabilities"]
    outcome = predicted([tmp_path / "a.tif"], tmp_path / "out", stub, large=0.005, save=kinds)
    assert (outcome.images, outcome.failures) == (1, []) and len(stub.batches) == 3 * once, "ids are the labels"
    assert (tmp_path / "out/ids/a.tif").read_bytes() == (tmp_path / "out/labels/a.tif").read_bytes()
    expected = np.zeros((70, 90), int)
    expected[:35, :45] = 1
    assert (read_label(tmp_path / "out/labels/a.tif") == expected).all()
    assert np.load(tmp_path / "out/probabilities/a.npy").shape == (2, 70, 90)
    with tifffile.TiffFile(tmp_path / "out/labels/a.tif") as tiff:
        assert tiff.pages.first.tags[33922].value[3:5] == (400000.0, 5000000.0)
    again = predicted([tmp_path / "a.tif"], tmp_path / "out", stub, large=0.005, save=["overlay"])
    assert "too large to be predicted at once; takes --save labels" in again.failures[0]


def test_a_camera_ends_at_an_interrupt_with_all_that_it_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = video(tmp_path / "v.avi", 4), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: real(str(file)) if source == 0 else real(source))
    stub = Stub()
    stub.interrupt_at = 3
    outcome = predicted(["0"], tmp_path / "out", stub, save=["overlay", "json"])
    assert outcome.images >= 1
    assert real(str(tmp_path / "out/overlay/camera0_semantic.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == outcome.images
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["images"]) == outcome.images


def test_a_page_that_fails_is_listed_and_its_file_done_again(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "stack.tif") as tiff:
        for size in ((12, 16), (7, 7), (12, 18)):
            tiff.write(picture(size=size), photometric="rgb")
    outcome = predicted([tmp_path / "stack.tif"], tmp_path / "out")
    assert outcome.images == 2 and len(outcome.failures) == 1
    line = f"{tmp_path}/stack.tif#000001: cannot be predicted"
    assert (tmp_path / "out" / "failed.txt").read_text().startswith(line) and outcome.failures[0].startswith(line)
    again = predicted([tmp_path / "stack.tif"], tmp_path / "out", resume=True)
    assert (again.images, again.skipped) == (2, 0)
