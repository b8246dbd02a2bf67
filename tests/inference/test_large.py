"""Large images in bands: the same as windows over the whole, after a kill too, and from file to file."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from seg_ext.errors import UserError
from seg_ext.inference.large import LargeImage
from seg_ext.inference.large_raster import predict_raster
from seg_ext.inference.sliding_window import SlidingWindow


def biased(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of 3 classes from the pixels and from where they lie in the window, so that every window counts."""
    results = []
    for x in batch:
        image = x["image"].float() / 64
        ramp = torch.linspace(-1, 1, image.shape[2]) + torch.linspace(-1, 1, image.shape[1])[:, None]
        results.append({"sem_seg": image + torch.stack([ramp, -ramp, ramp * ramp])})
    return results


def noise(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def reader(pixels: np.ndarray) -> Any:
    return lambda top, left, height, width: pixels[top : top + height, left : left + width]


@pytest.mark.parametrize(("size", "window"), [((70, 90), (24, 32)), ((20, 90), (32, 16)), ((90, 10), (20, 24))])
@pytest.mark.parametrize(("overlap", "blend"), [(0, "uniform"), (1 / 3, "hann"), (0.7, "hann"), (0.6, "scores")])
@pytest.mark.parametrize("memory", [1, 30_000, 1 << 29])
def test_bands_and_panels_give_what_windows_over_the_whole_give(
    size: tuple[int, int], window: tuple[int, int], overlap: float, blend: str, memory: int
) -> None:
    pixels = noise(*size)
    layout = {"overlap": overlap, "blend": blend, "batch": 2}
    whole = SlidingWindow(biased, window, **layout)([{"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}])
    image = LargeImage(
        biased, size, read=reader(pixels), window=window, output="probabilities", memory=memory, **layout
    )
    found, seen = np.full((3, *size), np.nan, np.float32), np.zeros(size, int)

    def write(top: int, left: int, part: np.ndarray) -> None:
        rows, columns = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
        found[:, rows, columns] = part
        seen[rows, columns] += 1

    steps: list[tuple[int, int]] = []
    image.run(write, progress=lambda *step: steps.append(step))
    assert (seen == 1).all()
    assert (
        np.array_equal(found, whole[0]["sem_seg"].exp().numpy())
        or np.abs(found - whole[0]["sem_seg"].softmax(0).numpy()).max() < 1e-6
    )
    assert steps == [(i + 1, image.bands) for i in range(image.bands)]


def test_of_each_band_no_more_than_the_memory_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **keys: made.append(int(np.prod(size))) or zeros(*size, **keys))
    pixels = noise(64, 400)
    image = LargeImage(biased, (64, 400), read=reader(pixels), window=(32, 32), memory=4 * 3 * 32 * 100)
    made.clear()
    image.run(lambda *part: None)
    assert image.bands > 2 * 3 and max(made) <= 3 * 32 * 100


def test_a_killed_run_goes_on_to_the_same_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", noise(2000, 2000))
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from seg_ext.data.raster_writing import RasterWriter
        from seg_ext.inference.large_raster import predict_raster
        from test_large import biased
        write, count = RasterWriter.write, 0

        def dying(self, top, left, pixels):
            global count
            count += 1
            write(self, top, left, pixels[:, :50] if count == 4 else pixels)
            if count == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        RasterWriter.write = dying
        predict_raster(biased, {str(tmp_path / "image.npy")!r}, target={str(tmp_path / "killed.tif")!r}, format="RGB")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert json.loads((tmp_path / "killed.tif.json").read_text())["done"] == 3
    assert not (tmp_path / "killed.tif").exists()
    steps: list[int] = []
    paths = {
        name: predict_raster(
            biased,
            tmp_path / "image.npy",
            target=tmp_path / f"{name}.tif",
            format="RGB",
            progress=lambda done, of: steps.append(done),
        )
        for name in ("killed", "whole")
    }
    assert steps[0] == 4 and steps.count(1) == 1
    assert paths["killed"].read_bytes() == paths["whole"].read_bytes()
    assert set(np.unique(tifffile.imread(paths["whole"]))) == {0, 1, 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.npy", "killed.tif", "whole.tif"]


def test_a_run_of_other_arguments_does_not_go_on(tmp_path: Path) -> None:
    pixels = noise(64, 64)
    manifest = tmp_path / "a.json"

    def run(about: dict[str, Any], **layout: Any) -> None:
        image = LargeImage(biased, (64, 64), read=reader(pixels), window=(32, 32), **layout)
        image.run(lambda *part: None, manifest=manifest, about=about)

    run({"weights": "a.pth"})
    run({"weights": "a.pth"})
    for about, layout, line in (
        ({"weights": "b.pth"}, {}, "begun with weights 'a.pth', not 'b.pth'; remove it to begin anew"),
        ({"weights": "a.pth"}, {"overlap": 0.5}, "begun with overlap 0.33"),
        ({}, {}, "begun with weights 'a.pth', not None"),
    ):
        with pytest.raises(UserError, match=f"a.json: {line}"):
            run(about, **layout)
    manifest.write_text("{")
    with pytest.raises(UserError, match="no manifest of an unfinished prediction"):
        run({"weights": "a.pth"})


def test_what_cannot_be_predicted_says_why(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(40, 50))
    for predict, keys, line in (
        (lambda batch: [{"instances": 0}], {}, "for those that give sem_seg"),
        (biased, {"bands": 5}, "a.npy: 3 bands, but"),
        (biased, {"window": (0, 8)}, r"window.SIZE \[0, 8\]"),
        (biased, {"output": "masks"}, "output 'masks': takes labels or probabilities"),
        (biased, {"target": tmp_path / "a.npy"}, "is the image itself"),
        (biased, {"target": tmp_path / "a.png"}, "written as .tif or .npy"),
    ):
        with pytest.raises(UserError, match=line):
            predict_raster(predict, tmp_path / "a.npy", **({"target": tmp_path / "b.tif", "format": "RGB"} | keys))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy"]


def test_a_georeferenced_tiff_gives_one(tmp_path: Path) -> None:
    scale = (33550, 12, 3, (0.5, 0.5, 0.0), True)
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 50), photometric="rgb", extratags=[scale])
    path = predict_raster(biased, tmp_path / "a.tif", target=tmp_path / "out" / "b.tif", window=(16, 16))
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        assert page.tags[33550].value == scale[3] and page.shape == (40, 50) and page.dtype == np.uint8
