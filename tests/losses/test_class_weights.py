"""Class weights from counts: hand-made cases, and CamVid's as published."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg_ext.losses.class_weights import effective_number, inverse_frequency, median_frequency


def test_median_frequency_is_over_the_images_that_contain_a_class() -> None:
    counts, pixels = [60, 30, 10], [100, 100, 50]  # shares .6 .3 .2
    assert median_frequency(counts, pixels) == pytest.approx([0.5, 1.0, 1.5])


def test_a_class_that_does_not_occur_weighs_nothing_and_is_no_part_of_the_median() -> None:
    assert median_frequency([60, 0, 30, 10], [100, 0, 100, 50]) == pytest.approx([0.5, 0, 1.0, 1.5])
    assert inverse_frequency([60, 0, 40]) == pytest.approx([100 / 120, 0, 100 / 80])
    assert effective_number([60, 0, 60]) == pytest.approx([1, 0, 1])


def test_inverse_frequencies_weigh_every_class_alike_and_a_pixel_one() -> None:
    counts = np.array([1000, 10, 1])
    weights = inverse_frequency(counts)
    assert weights * counts == pytest.approx(np.full(3, 1011 / 3))


def test_effective_number_lies_between_none_and_inverse_frequency() -> None:
    counts = [1000, 100, 10]
    assert effective_number(counts, beta=0) == pytest.approx([1, 1, 1])
    inverse = inverse_frequency(counts)
    assert effective_number(counts, beta=1 - 1e-9) == pytest.approx(inverse / inverse.mean(), rel=1e-4)
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    assert effective_number(counts, beta=0.99) == pytest.approx(np.array(raw) / np.mean(raw))


@pytest.mark.parametrize(
    "call",
    [
        lambda: median_frequency([1, 2], [3]),
        lambda: median_frequency([5], [3]),
        lambda: inverse_frequency([0, 0]),
        lambda: inverse_frequency([1, -1]),
        lambda: inverse_frequency([[1, 2]]),
        lambda: effective_number([1, 2], beta=1),
    ],
)
def test_what_are_no_counts_is_refused_in_a_line(call: object) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*takes[^\n]*$"):
        call()


CAMVID = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "camvid" / "trainannot"
PUBLISHED = [0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
SIGN = 6  # its published weight is 2.5 times what these labels give


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not under DETECTRON2_DATASETS")
def test_camvids_published_weights_are_near_those_of_its_labels() -> None:
    counts, pixels = np.zeros(11), np.zeros(11)
    for file in sorted(CAMVID.glob("*.png")):
        label = np.asarray(Image.open(file))
        number = np.bincount(label.ravel(), minlength=12)[:11]
        counts += number
        pixels += (number > 0) * label.size
    weights = median_frequency(counts, pixels)
    counted = [0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    assert weights == pytest.approx(counted, abs=5e-5)
    ratio = np.delete(weights / PUBLISHED, SIGN)
    assert ratio.min() > 1.01 and ratio.max() < 1.21
