"""A dry run meets what a training would meet up to its first evaluation, and leaves nothing behind."""

import re
from pathlib import Path
from shutil import rmtree

import pytest

from seg_ext.cli.main import main


def run(command: list[str], *opts: object) -> int:
    return main([command[0], "--dry-run", *command[1:], *map(str, opts)])


def test_prints_what_the_training_will_cost_and_writes_nothing(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    opts = ("SOLVER.MAX_ITER", 1000, "TEST.EVAL_PERIOD", 300, "TEST.GALLERY", 3, "SOLVER.EMA.ENABLED", True)
    best = ("TEST.VALIDATION_LOSS", True, "TEST.BEST", "validation/total_loss")
    assert run(tiny, *opts, *best) == 0
    out = capsys.readouterr().out
    seconds = float(re.search(r"iteration: ([\d.]+) s", out)[1])
    assert re.search(r"model: 0\.\d+ M parameters", out) and "total_loss" in out
    assert "images of all sets: 5\n" in out and re.search(r"memory: \d+\.\d+ GiB", out)
    expected = re.search(r"expected: (\S+): (\S+) for 1000 iterations, (\S+) for 4 evaluation", out)
    whole, training, evaluating = (
        sum(60**i * int(x) for i, x in enumerate(span.split(":")[::-1])) for span in expected.groups()
    )
    assert training == pytest.approx(1000 * seconds, abs=1.1) and whole == pytest.approx(training + evaluating, abs=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_would_end_the_training_later_ends_it_now(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny, "TEST.BEST", "sem_seg/miou") == 2
    assert "'sem_seg/miou': the evaluation has no such score; it has sem_seg/mIoU" in capsys.readouterr().err
    file = tiny[2]
    assert run(tiny, "OUTPUT_DIR", f"{file}/run") == 2
    assert f"cannot be written: {file} is no folder" in capsys.readouterr().err


def test_a_batch_whose_losses_are_not_finite_stays(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny, "MODEL.PIXEL_STD", "[1e-38, 1e-38, 1e-38]") == 1
    file = Path(re.search(r"--replay (\S+nonfinite_\d+\.pth)", capsys.readouterr().err)[1])
    assert main(["train", "--replay", str(file)]) == 0
    rmtree(file.parent)


def test_begins_with_the_last_checkpoint_and_leaves_it(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "DATASETS.TEST", "()"]) == 0
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert run([tiny[0], "--resume", *tiny[1:]], "SOLVER.MAX_ITER", 9) == 0
    assert "for 5 iterations" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == files
