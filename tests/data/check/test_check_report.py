"""The figures of a report are those of the pixels, and its text and JSON hold all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from seg_ext.data.check import FAULTS, as_dict, as_text, check_data
from seg_ext.losses.class_weights import median_frequency


def test_class_frequencies_and_weights(semantic: Any) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (4, 24, 32), p=[0.6, 0.3, 0.05, 0.05])
    labels[0][labels[0] == 2] = 0
    for i, label in enumerate(labels):
        semantic.write_label(i, label)
    classes = semantic.check().statistics["classes"]
    counts = np.bincount(labels.ravel(), minlength=256)
    weights = median_frequency(counts[:3], [4 * 768, 4 * 768, 3 * 768])
    assert [row["pixels"] for row in classes["rows"]] == counts[:3].tolist()
    assert [row["images"] for row in classes["rows"]] == [4, 4, 3]
    assert [row["weight"] for row in classes["rows"]] == pytest.approx(weights.tolist())
    assert classes["ignored_pixels"] == counts[255]


def test_mean_and_std_are_those_of_all_pixels_in_the_models_channels(semantic: Any) -> None:
    semantic.write_image(3, np.random.default_rng(5).integers(0, 40, (50, 60, 3), np.uint8))
    semantic.write_label(3, np.arange(3000).reshape(50, 60) % 3)
    pixels = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 3) for file in semantic.images.iterdir()])
    channels = semantic.check().statistics["channels"]
    assert channels["format"] == "BGR"
    assert channels["pixel_mean"] == pytest.approx(pixels.mean(0)[::-1].tolist())
    assert channels["pixel_std"] == pytest.approx(pixels.std(0)[::-1].tolist())
    grey = check_data([semantic.name], train=[], test=[], image_format="L", bands=1)[0].statistics["channels"]
    assert len(grey["pixel_mean"]) == 1
    faults = check_data([semantic.name], train=[], test=[], image_format="L", bands=2)[0].faults
    assert [fault.code for fault in faults] == ["unreadable_image"] and len(faults[0].findings) == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_mean_and_std_of_every_band_of_a_stack(semantic: Any, dtype: type) -> None:
    greatest = np.array([10, 50, 100, 200, 250]) * (1 if dtype == np.uint8 else 200)
    stack = (np.random.default_rng(0).random((4, 24, 32, 5)) * greatest).astype(dtype)
    for i in range(4):
        (semantic.images / f"{i}.png").unlink()
        tifffile.imwrite(semantic.images / f"{i}.tif", stack[i], photometric="minisblack", planarconfig="contig")
    report = semantic.check()
    assert report.faults == []
    channels, bands = report.statistics["channels"], stack.astype(np.float64).reshape(-1, 5)
    assert channels["format"] == "BANDS" and "FORMAT: BANDS" in as_text(report)
    assert channels["pixel_mean"] == pytest.approx(bands.mean(0).tolist(), rel=1e-5)
    assert channels["pixel_std"] == pytest.approx(bands.std(0).tolist(), rel=1e-4)


def test_what_a_config_takes_over_is_counted_on_training_data_and_grey_images_are_told(semantic: Any) -> None:
    for i in range(4):
        semantic.write_image(i, np.random.default_rng(i).integers(0, 255, (24, 32), np.uint8))
    assert "all images are grey" in as_text(semantic.check())
    (tested,) = check_data([semantic.name], train=[], test=[semantic.name])
    assert "for a config" not in as_text(tested) and tested.statistics["channels"]


def test_sizes(semantic: Any) -> None:
    for i, (height, width) in enumerate([(10, 20), (10, 21), (12, 20), (14, 20)]):
        semantic.write_image(i, np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8))
        semantic.write_label(i, np.arange(height * width).reshape(height, width) % 3)
    sizes = semantic.check().statistics["sizes"]
    assert sizes["height"] == {"min": 10, "median": 10, "max": 14} and sizes["distinct"] == 4
    assert sizes["width"] == {"min": 20, "median": 20, "max": 21}


def test_the_text_shows_some_files_and_the_json_all(semantic: Any) -> None:
    for i in range(4):
        semantic.write_label(i, np.full((24, 32), 9))
    report = semantic.check()
    text = as_text(report, limit=1)
    assert "error: ids_out_of_range: label ids that are no class (4)" in text and "and 3 more" in text
    assert text.count(str(semantic.labels)) == 1 and f"fix: {FAULTS['ids_out_of_range'].fix}" in text
    result = json.loads(json.dumps(as_dict([report]), allow_nan=False))
    (fault,) = [f for f in result["data_sets"][0]["faults"] if f["code"] == "ids_out_of_range"]
    assert fault["severity"] == "error" and fault["count"] == len(fault["places"]) == 4
    assert result["errors"] == 1


def test_the_block_for_a_config_loads_as_one(semantic: Any, tmp_path: Path) -> None:
    from seg_ext.config import load_config

    report = semantic.check()
    block = as_text(report).split("# for a config\n")[1]
    assert set(yaml.safe_load(block)) == {"INPUT", "MODEL"}
    (tmp_path / "pasted.yaml").write_text(block)
    cfg = load_config(tmp_path / "pasted.yaml")
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx(report.statistics["channels"]["pixel_mean"], rel=1e-3)
    assert cfg.MODEL.SEM_SEG_HEAD.LOSSES[0]["class_weights"] == pytest.approx([1, 1, 1], rel=1e-2)


def test_examples_are_sound_and_begin_with_the_rarest_class(semantic: Any) -> None:
    for i in (0, 1, 3):
        semantic.write_label(i, np.arange(768).reshape(24, 32) % 2)
    semantic.write_label(1, np.full((24, 32), 9))
    examples = [Path(record["file_name"]).stem for record in semantic.check().examples]
    assert examples[0] == "2" and sorted(examples) == ["0", "2", "3"]


def test_every_fault_has_a_severity_a_title_and_a_fix() -> None:
    for code, kind in FAULTS.items():
        assert kind.severity in ("error", "warning") and kind.title and kind.fix and code.islower()
