"""What `seg-ext analyze` prints and writes, and what it refuses."""

import json
from pathlib import Path

import pytest

from seg_ext.cli.analyze import _bytes, _human
from seg_ext.cli.main import main

TINY = ["analyze", "--config-file", "camvid/unet_R_18_cpu.yaml"]


def test_tables_line_up_and_hold_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--size", "64", "64", "--batch", "2", "--depth", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii() and "\x1b" not in out
    modules, outputs, memory = (block.splitlines() for block in out.split("\n\n")[1:4])
    assert [line.split()[0] for line in modules[2:]] == ["model", "backbone", "sem_seg_head", "decoder"]
    assert modules[2].split()[2:6] == ["12.69", "M", "100.0", "%"]
    for table in (modules, outputs, memory):
        assert len({len(line) for line in table}) == 1  # the last column is on the right
    assert outputs[-1].split()[:6] == ["sem_seg", "11", "64", "64", "1", "0"]
    assert [line.split()[:2] for line in memory[2:]] == [[m, n] for m in ("inference", "training") for n in "12"]


def test_depth_opens_more_of_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--size", "64", "64", "--depth", "2"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.split("\n\n")[1].splitlines()[2:]]
    assert names[:8] == ["model", "backbone", "stem", "conv1", "res2", "res3", "res4", "res5"]
    assert "norm" not in names


def test_json_to_the_terminal_is_alone_and_raw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--size", "64", "32", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        *("config", "model", "size", "padded", "modules", "outputs", "weights", "memory", "uncounted"),
        *("proposals", "masks", "left_out"),
    }
    assert found["size"] == [64, 32]
    assert set(found["modules"][0]) == {"name", "kind", "parameters", "trainable", "buffers", "multiply_adds"}
    assert found["modules"][0]["parameters"] == 12_689_579
    assert set(found["outputs"][0]) == {"name", "channels", "height", "width", "stride", "offset", "receptive_field"}
    assert [set(row) for row in found["memory"]] == [{"mode", "batch", "peak", "reason"}] * 2


def test_json_to_a_file_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    assert main([*TINY, "--size", "64", "64", "--json", str(file), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "11"]) == 0
    assert json.loads(file.read_text())["outputs"][-1]["channels"] == 11
    assert "peak memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["analyze"], "--config-file is missing"),
        (["analyze", "--config-file", "voc/unknown.yaml"], "config file voc/unknown.yaml not found"),
        ([*TINY, "--size", "0", "64"], "--size 0 64: takes whole numbers of at least 1"),
        ([*TINY, "--batch", "0"], "--batch 0: takes"),
        ([*TINY, "--depth", "-1"], "--depth -1: takes"),
        ([*TINY, "--size", "64", "64", "--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json: cannot"),
        (
            ["analyze", "--config-file", "voc/deeplabv2_vgg16_aspp.yaml", "--size", "8", "8"]
            + ["MODEL.VGG.VARIANT", "plain"],
            "VGG takes images of 32 or more pixels a side, not 8x8",
        ),
    ],
)
def test_bad_input_ends_with_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "-"), (999, "999"), (1000, "1.00 K"), (999_499, "999.50 K"), (999_999, "1.00 M"), (92_820_363_712, "92.82 G")],
)
def test_human_numbers(number: int, text: str) -> None:
    assert _human(number) == text


@pytest.mark.parametrize(("number", "text"), [(2**20, "1.0 MiB"), (1000 * 2**20, "0.98 GiB"), (3 * 2**30, "3.00 GiB")])
def test_bytes_are_binary(number: int, text: str) -> None:
    assert _bytes(number) == text
