"""``seg-ext refine``: saved maps become label maps; the search finds what makes them better."""

import json
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from seg_ext.cli.main import main
from seg_ext.inference.crf_search import grid_points, refine_grid, score_points
from seg_ext.inference.refine import build_dense_crf
from seg_ext.metrics import confusion_matrix, semantic_scores

NAME, SIZE = "toy_refine", (24, 32)
CRF = "[{'NAME': 'dense_crf', 'bi_xy_std': 8, 'bi_rgb_std': 30, 'iterations': 3}]"


def run(*argv: object) -> int:
    return main(["refine", *map(str, argv)])


def refusal(capsys: pytest.CaptureFixture[str], *argv: object, status: int = 2) -> str:
    capsys.readouterr()
    assert run(*argv) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("seg-ext: error: "), lines
    return lines[0]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Three images of two regions, their labels, and noisy probabilities in the three kinds of file."""
    rng, records = np.random.default_rng(0), []
    for folder in ("images", "labels", "maps"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        labels = (np.indices(SIZE).sum(0) > 20 + 5 * i).astype(np.uint8)
        image = 120 * labels[..., None] + rng.integers(0, 20, (*SIZE, 3))
        scores = np.stack([labels == 0, labels == 1]) * 1.0 + rng.normal(0, 1, (2, *SIZE))
        odds = torch.from_numpy(scores).softmax(0).numpy().astype(np.float32)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{i}.png")
        if i == 0:
            np.save(tmp_path / "maps" / "0.npy", odds)
        elif i == 1:
            np.savez(tmp_path / "maps" / "1.npz", odds.astype(np.float16))
        else:
            tifffile.imwrite(tmp_path / "maps" / "2.tif", odds)
        folders = {"file_name": "images", "sem_seg_file_name": "labels"}
        records.append({key: str(tmp_path / folder / f"{i}.png") for key, folder in folders.items()})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(evaluator_type="sem_seg", stuff_classes=["a", "b"], ignore_label=255)
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def read(file: Path) -> np.ndarray:
    return np.array(Image.open(file)).astype(int)


def test_maps_of_every_kind_become_the_crfs_labels(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tree / "out"
    assert run("--maps", tree / "maps", "--images", tree / "images", "--output", out, "TEST.REFINE", CRF) == 0
    assert f"3 of 3 maps: {out / 'labels'}" in capsys.readouterr().out
    crf = build_dense_crf(2, bi_xy_std=8, bi_rgb_std=30, iterations=3)
    scores = torch.from_numpy(np.load(tree / "maps" / "0.npy"))[None].log()
    image = torch.from_numpy(read(tree / "images" / "0.png")).permute(2, 0, 1)[None].float()
    assert np.array_equal(read(out / "labels" / "0.png"), crf(scores, image)[0].argmax(0).numpy())
    for i in range(3):
        truth, found = read(tree / "labels" / f"{i}.png"), read(out / "labels" / f"{i}.png")
        assert (found == truth).mean() > 0.97
    assert {file.name for file in out.rglob("*.*")} == {"0.png", "1.png", "2.png"}


def test_a_config_with_morphology_and_a_data_sets_images_serve_too(tree: Path) -> None:
    yaml = tree / "a.yaml"
    yaml.write_text("VERSION: 2\nTEST: {REFINE: [{NAME: morphology, STEPS: [{NAME: largest_component}]}]}\n")
    assert run("--maps", tree / "maps", "--dataset", NAME, "--config-file", yaml, "--output", tree / "out") == 0
    found = Image.open(tree / "out" / "labels" / "0.png")
    assert found.mode == "P" and set(np.unique(np.array(found))) == {0, 1}  # in the set's colours


def test_the_search_scores_its_points_as_the_definition_does_and_finds_the_best(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["bi_w=0.5,4", "bi_xy_std=8", "bi_rgb_std=2,30", "iterations=2"]
    out = tree / "out"
    assert run("--maps", tree / "maps", "--dataset", NAME, "--search", "--output", out, "--grid", *grid) == 0
    found = json.loads((out / "search.json").read_text())
    best = found["best"]
    assert best["mIoU"] == max(p["mIoU"] for p in found["points"]) > found["unrefined"] + 10
    assert len(found["points"]) == len({json.dumps(p) for p in found["points"]}) > 4  # the second round is finer
    crf = build_dense_crf(2, **{key: value for key, value in best.items() if key != "mIoU"})
    counts = 0
    for i, suffix in enumerate(("npy", "npz", "tif")):
        file = tree / "maps" / f"{i}.{suffix}"
        odds = tifffile.imread(file) if suffix == "tif" else np.load(file)
        odds = odds["arr_0"] if suffix == "npz" else odds
        image = torch.from_numpy(read(tree / "images" / f"{i}.png")).permute(2, 0, 1)[None].float()
        pred = crf(torch.from_numpy(odds.astype(np.float32))[None].log(), image)[0].argmax(0).numpy()
        counts = counts + confusion_matrix(pred, read(tree / "labels" / f"{i}.png"), 2, ignore=255)
    assert best["mIoU"] == pytest.approx(100 * semantic_scores(counts).miou, abs=1e-3)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("TEST.REFINE \"[{'NAME': 'dense_crf', 'bi_w': ")
    key, steps = line.split(" ", 1)
    assert run("--maps", tree / "maps", "--dataset", NAME, "--output", out, key, steps.strip('"')) == 0


def test_points_that_share_filters_score_as_if_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 16, 16, generator=draw), 255 * torch.rand(3, 16, 16, generator=draw), np.eye(16, dtype=int)
    points = grid_points({"bi_w": (1, 6), "pos_w": (1, 3), "bi_rgb_std": (20, 90)}, {"bi_xy_std": 5, "iterations": 2})
    together, plain = score_points(points, [sample], num_classes=2, ignore=255)
    alone = [score_points([point], [sample], num_classes=2, ignore=255)[0][0] for point in points]
    assert together == alone and len(set(together)) > 1
    assert plain == score_points([], [sample], num_classes=2, ignore=255)[1]


@pytest.mark.parametrize(
    ("key", "values", "best", "want"),
    [
        ("bi_w", (4, 8, 10), 8, (6, 8, 9)),
        ("bi_w", (4, 8, 10), 10, (9, 10, 11)),
        ("bi_w", (1, 5), 1, (1, 3)),  # the value below would be negative
        ("bi_w", (3,), 3, (3,)),
        ("iterations", (5, 10), 5, (2, 5, 8)),
    ],
)
def test_the_next_grid_lies_half_way_to_the_neighbours(key: str, values: tuple, best: float, want: tuple) -> None:
    assert refine_grid({key: values}, {key: best}) == {key: want}


def test_bad_input_is_refused_in_one_line(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--maps", tree / "maps", "--output", tree / "out")
    images = (*base, "--images", tree / "images")
    search = (*base, "--dataset", NAME, "--search")
    for argv, message in (
        (base, "give --images DIR, or one data set: --dataset NAME"),
        ((*base, "--dataset", "nothing"), "unknown data set 'nothing'"),
        (("--maps", tree / "no", "--images", tree / "images"), "no such folder; takes one of score maps"),
        ((*base, "--images", tree / "no"), "--images takes one of images"),
        ((*images, "--grid", "bi_w=3"), "--grid goes with --search"),
        ((*search, "--rounds", 0), "--rounds and --limit take whole numbers from 1"),
        ((*search, "--grid", "bi=3"), "takes KEY=A,B with KEY of bi_w, bi_xy_std"),
        ((*search, "--grid", "bi_w=a"), "takes numbers with commas"),
        ((*search, "--grid", "bi_w=0"), "--grid bi_w=0: takes positive numbers"),
        ((*search, "TEST.REFINE", "[{'NAME': 'morphology', 'STEPS': []}]"), "--search: takes one dense_crf"),
        ((*images, "TEST.REFINE", CRF.replace("8", "-8")), "bandwidths of position must be positive and finite"),
        ((*images, "TEST.REFIN", "[]"), "did you mean TEST.REFINE"),
    ):
        assert message in refusal(capsys, *argv)


def test_a_map_that_does_not_fit_is_named_and_the_others_are_refined(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--maps", tree / "maps", "--images", tree / "images", "--output", tree / "out", "TEST.REFINE", CRF)
    file = tree / "maps" / "0.npy"
    odds = np.load(file)
    for bad, message in (
        (odds[:, :20], "0.npy: a map of 20x32 for"),
        (odds * 1.5, "0.npy: probabilities must sum to 1 over the classes"),
        (odds - 0.5, "0.npy: probabilities must not be negative"),
        (odds * np.nan, "0.npy: has values that are not finite"),
        (odds.astype(int), "0.npy: 2x24x32 int64; takes (K, H, W) floats"),
        (odds[0], "0.npy: 24x32 float32; takes (K, H, W) floats"),
    ):
        np.save(file, bad)
        assert message in refusal(capsys, *argv, status=1)
        assert not (tree / "out" / "labels" / "0.png").exists()
    assert (tree / "out" / "labels" / "1.png").exists()
    np.savez_compressed(packed := tree / "packed.npz", odds)
    zipped = bytearray(packed.read_bytes())
    zipped[30 + sum(struct.unpack("<HH", zipped[26:30]))] = 0xFF  # no way for a deflated block to begin
    whole = BytesIO()
    tifffile.imwrite(whole, odds)
    for bad, name in ((b"PK\x03\x04 not a zip", "0.npy"), (zipped, "0.npz"), (whole.getvalue()[:-700], "0.tif")):
        file.unlink()
        file = file.with_name(name)
        file.write_bytes(bad)
        assert f"{name}: cannot be read as scores" in refusal(capsys, *argv, status=1)
    file.unlink()
    assert "0.png has no map" in refusal(capsys, *argv)
    np.save(tree / "maps" / "0.npy", odds)
    np.savez(tree / "maps" / "0.npz", odds)
    assert "0.png has two maps" in refusal(capsys, *argv)


def test_scores_before_the_softmax_are_taken_as_such(tree: Path) -> None:
    argv = ("--images", tree / "images", "TEST.REFINE", CRF)
    assert run("--maps", tree / "maps", "--output", tree / "a", *argv) == 0
    (tree / "logits").mkdir()
    for i in range(3):
        file = next((tree / "maps").glob(f"{i}.*"))
        odds = tifffile.imread(file) if file.suffix == ".tif" else np.load(file)
        odds = np.asarray(odds["arr_0"] if file.suffix == ".npz" else odds, np.float32)
        np.save(tree / "logits" / f"{i}.npy", np.log(odds) + 7)
    assert run("--maps", tree / "logits", "--logits", "--output", tree / "b", *argv) == 0
    for i in range(3):
        assert (read(tree / "a" / "labels" / f"{i}.png") == read(tree / "b" / "labels" / f"{i}.png")).mean() > 0.995
