"""Uncertainty in an evaluation: its scores, its figures and its maps on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from seg_ext.errors import UserError
from seg_ext.evaluation import SemanticEvaluator
from seg_ext.evaluation.artifacts import Artifacts
from seg_ext.evaluation.uncertainty import KEPT, SHAPE, uncertainty_counts, uncertainty_scores, write_uncertainty
from seg_ext.evaluation.uncertainty_figures import reliability_picture, risk_coverage_picture

NAME, SIZE = "toy_uncertainty", (20, 24)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Records with label maps, and outputs whose errors are where their entropy and their variance are high."""
    rng, records, outputs = np.random.default_rng(0), [], []
    for i in range(2):
        labels = rng.integers(0, 3, SIZE)
        margin = rng.uniform(0, 6, SIZE)
        guess = np.where(rng.random(SIZE) < np.exp(-margin), (labels + 1) % 3, labels)
        scores = torch.nn.functional.one_hot(torch.from_numpy(guess), 3).permute(2, 0, 1) * torch.from_numpy(margin)
        labels[:2] = 255
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png")})
        outputs.append({"sem_seg": scores, "uncertainty": {"variance": torch.from_numpy(np.exp(-margin) / 9)}})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(evaluator_type="sem_seg", stuff_classes=list("abc"), ignore_label=255)
    yield records, outputs
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def scores_of(toy: tuple[list[dict[str, Any]], list[dict[str, Any]]], evaluator: SemanticEvaluator) -> dict[str, float]:
    evaluator.process(*toy)
    return evaluator.evaluate()["sem_seg"]


def test_scores_are_those_of_the_sorted_pixels(toy: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    records, outputs = toy
    found = scores_of(toy, SemanticEvaluator(NAME, metrics=["uncertainty"]))
    labels = np.stack([np.array(Image.open(r["sem_seg_file_name"])) for r in records])
    odds = torch.stack([x["sem_seg"] for x in outputs]).softmax(1)
    entropy = -(odds * odds.log()).sum(1).numpy()[labels != 255]
    right = (odds.argmax(1).numpy() == labels)[labels != 255][np.argsort(entropy)]
    for share in KEPT:
        kept = round(share * len(right) / 100)
        assert found[f"KeptACC@{share}"] == pytest.approx(100 * right[:kept].mean(), abs=0.3)
        # the variance has the entropy's order
        assert found[f"KeptACC-variance@{share}"] == pytest.approx(found[f"KeptACC@{share}"], abs=0.5)
    risks = 1 - np.cumsum(right) / np.arange(1, len(right) + 1)
    assert found["AURC"] == pytest.approx(100 * risks.mean(), abs=0.3)
    assert found["KeptACC@50"] > found["pACC"] + 5
    assert not any("mutual" in key for key in found)


def test_labels_without_scores_have_no_entropy(toy: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    records, outputs = toy
    ids = [{"sem_seg_labels": x["sem_seg"].argmax(0)} for x in outputs]
    found = scores_of((records, ids), SemanticEvaluator(NAME, metrics=["uncertainty"]))
    assert np.isnan(found["AURC"]) and np.isnan(found["KeptACC@90"])


def test_a_map_of_another_size_is_refused_with_the_images_name() -> None:
    labels = np.zeros((3, 3), int)
    for values in (torch.zeros(2, 3), torch.full((3, 3), -1.0)):
        with pytest.raises(UserError, match="x.jpg: map of variance: "):
            uncertainty_counts({"uncertainty": {"variance": values}}, labels, labels, ignore=255, file_name="x.jpg")


def test_an_evaluation_with_these_metrics_leaves_their_figures(
    toy: tuple[list[dict[str, Any]], list[dict[str, Any]]], tmp_path: Path
) -> None:
    evaluator = SemanticEvaluator(NAME, metrics=["calibration", "uncertainty"])
    artifacts = Artifacts(NAME, [evaluator], tmp_path)
    artifacts.write({"sem_seg": scores_of(toy, evaluator)})
    assert {file.name for file in tmp_path.glob("r*.png")} == {"reliability.png", "risk_coverage.png"}


def test_pictures_show_what_the_counts_say() -> None:
    right, wrong = np.zeros((2, 3, 15))
    right[:, 11] = 100, 75, 75  # as sure as right
    wrong[:, 11] = 100, 0, 75
    drawn = [reliability_picture(x).astype(int) for x in (right, wrong)]
    blue = [(x[..., 2] > x[..., 0] + 90).sum() for x in drawn]  # the bar of height 0.75, but for the legend
    assert blue[0] > 3 * blue[1]
    counts = np.zeros(SHAPE, np.int64)
    empty = risk_coverage_picture(counts)
    counts[0, :, 100] = 10, 9
    assert not np.array_equal(empty, risk_coverage_picture(counts))
    assert uncertainty_scores(counts)["KeptACC@50"] == pytest.approx(0.9)


def test_maps_are_written_as_they_are_and_as_pictures_of_one_scale(tmp_path: Path) -> None:
    maps = {"entropy": torch.rand(9, 7) * np.log(4), "variance": torch.zeros(9, 7)}
    maps["entropy"][0, 0], maps["entropy"][0, 1] = 0, np.log(4)
    write_uncertainty(tmp_path / "new", "x", maps, classes=4)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        f"x_{name}.{kind}" for name in maps for kind in ("tif", "png")
    }
    stored = tifffile.imread(tmp_path / "new" / "x_entropy.tif")
    assert stored.dtype == np.float32 and np.array_equal(stored, maps["entropy"].numpy())
    picture = np.array(Image.open(tmp_path / "new" / "x_entropy.png")).astype(int)
    assert picture.shape == (9, 7, 3) and picture[0, 0].sum() < 20 and picture[0, 1].sum() > 550
    write_uncertainty(tmp_path, "y", {"entropy": maps["entropy"] / 2}, classes=4)
    assert np.array(Image.open(tmp_path / "y_entropy.png")).astype(int).sum() < 0.8 * picture.sum()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_uncertainty(tmp_path / "file" / "below", "x", maps)
