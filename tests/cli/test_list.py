"""The lists name everything that a config can name."""

import pytest

from seg_ext.cli.main import main
from seg_ext.decoders import DECODERS
from seg_ext.losses import LOSSES


def test_all_kinds_are_listed_with_a_caption(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    names = {*DECODERS, "build_seg_ext_vgg_backbone", "cross_entropy", "presence", "RandomScaleCrop"}
    assert names | {"camvid_train", "voc/fcn8s_vgg16.yaml"} <= set(rows)
    assert all(rows[name] for name in (*names, "voc/fcn8s_vgg16.yaml"))
    captions = [" ".join(rows[name]) for name in (*DECODERS, *LOSSES)]
    assert len(set(captions)) == len(captions)


@pytest.mark.parametrize(("kind", "title"), [("losses", "losses"), ("encoders", "backbones")])
def test_one_kind_alone(kind: str, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == [title]


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "heads"]) == 2
    assert "takes some of decoders, backbones" in capsys.readouterr().err
