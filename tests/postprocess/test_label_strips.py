"""Label strips against detectron2's resizing of all scores, and what they cost beside it."""

import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess

from seg_ext.postprocess import label_strips, resized_labels

DRAW = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("stored", "size", "image", "output"),
    [
        ((32, 32), (128, 128), (128, 128), (128, 128)),
        ((33, 21), (127, 161), (127, 161), (127, 161)),
        ((32, 24), (128, 96), (121, 90), (300, 201)),
        ((32, 24), (128, 96), (121, 90), (60, 47)),
        ((64, 64), (64, 64), (64, 60), (64, 64)),
        ((1, 1), (16, 16), (9, 3), (40, 40)),
    ],
)
def test_labels_equal_the_classes_of_all_resized_scores(
    stored: tuple[int, int], size: tuple[int, int], image: tuple[int, int], output: tuple[int, int], align_corners: bool
) -> None:
    scores = torch.randn(19, *stored, generator=DRAW)
    resized = F.interpolate(scores[None], size, mode="bilinear", align_corners=align_corners)[0]
    wanted = sem_seg_postprocess(resized, image, *output).argmax(0)
    found = resized_labels(scores, size, image_size=image, output_size=output, align_corners=align_corners)
    assert found.dtype == torch.int64 and found.shape == output
    assert (found != wanted).sum() <= 1  # of equal scores, but for rounding


def test_at_most_a_millionth_of_the_pixels_differs() -> None:
    different = total = 0
    for side in (509, 512):
        scores = torch.randn(9, 100, 100, generator=DRAW).half()
        wanted = F.interpolate(scores[None].float(), (side, side), mode="bilinear", align_corners=False)[0].argmax(0)
        different += int((resized_labels(scores, (side, side)) != wanted).sum())
        total += wanted.numel()
    assert different <= 1e-6 * total


def test_strips_of_a_row_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(5, 17, 13, generator=DRAW)
    whole = resized_labels(scores, (64, 52), image_size=(60, 50), output_size=(90, 77))
    monkeypatch.setattr(label_strips, "_CPU_CHUNK", 1)
    assert torch.equal(resized_labels(scores, (64, 52), image_size=(60, 50), output_size=(90, 77)), whole)


def test_it_is_no_slower_than_resizing_everything() -> None:
    scores = torch.randn(150, 64, 64, generator=DRAW)
    spent = {"strips": [], "all": []}
    for _ in range(3):  # in turns; processor time, which others on the machine do not count into
        for name, run in (
            ("strips", lambda: resized_labels(scores, (512, 512))),
            ("all", lambda: sem_seg_postprocess(scores, (64, 64), 512, 512).argmax(0)),
        ):
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
    assert min(spent["strips"]) < min(spent["all"]), spent


def test_many_classes_of_a_large_image_take_a_fraction_of_their_scores() -> None:
    """In a process of its own; 150 x 1024 x 1024 scores would be 600 MiB."""
    code = """
        import resource
        import torch
        from seg_ext.postprocess import resized_labels
        scores = torch.zeros(150, 128, 128).normal_()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resized_labels(scores, (1024, 1024))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 150  # MiB
