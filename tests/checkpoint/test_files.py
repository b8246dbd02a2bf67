"""Files of weights: three formats read without running code, damaged and foreign ones named in one line."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from seg_ext.checkpoint import read_checkpoint, write_safetensors
from seg_ext.checkpoint.files import SIDECAR
from seg_ext.checkpoint.sidecar import classes_of, config_of, plain, read_sidecar
from seg_ext.errors import UserError


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch touched",)


def torch_bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def refusal(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_checkpoint(file)
    assert str(error.value).startswith(f"weights {file}: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"weights {file}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.pkl", pickle.dumps({"model": Malicious()})),
        ("x.pth", pickle.dumps({"model": Malicious()})),
        ("y.pth", torch_bytes({"model": {"a": torch.zeros(1)}, "meta": Malicious()})),
    ],
)
def test_a_pickle_that_runs_code_is_refused_by_the_name_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(tmp_path / name, content)
    assert line == f"not a readable checkpoint: it refers to {os.name}.system, which weights do not need"
    assert not Path("touched").exists()


class Evaluates:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('touched', 'w')",)


def test_a_builtin_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch_bytes({"model": {"a": torch.zeros(1)}, "meta": Evaluates()})
    assert refusal(tmp_path / "x.pth", content).endswith("it refers to eval, which weights do not need")
    assert not Path("touched").exists()


TENSORS = {"a.weight": torch.arange(600.0)}
WHOLE = {"pth": torch_bytes(TENSORS), "safetensors": save(TENSORS), "pkl": pickle.dumps({"a": np.arange(600.0)})}


@pytest.mark.parametrize("suffix", WHOLE)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_or_empty_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    line = refusal(tmp_path / f"x.{suffix}", WHOLE[suffix][: int(share * len(WHOLE[suffix]))])
    assert ("it is empty (0 bytes)" if not share else "trunca") in line


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "x.pth",
            b"<html>404</html>",
            "not a readable checkpoint: takes a PyTorch file, a pickle of arrays (.pkl), or",
        ),
        ("x.pkl", b"<html>404</html>", "not a readable checkpoint: "),
        ("x.safetensors", b"<html>404</html>", "truncated, or no safetensors file: "),
        ("x.pth", torch_bytes({"optimizer": {"state": {}}, "iteration": 3}), "holds the state of an optimizer"),
        (
            "x.pth",
            torch_bytes({"state": {}, "param_groups": []}),
            "holds the state of an optimizer or schedule, and no",
        ),
        ("x.pth", torch_bytes([torch.zeros(1)]), "holds no state dict, at its top or under 'model', 'state_dict'"),
        ("x.pth", torch_bytes({"model": {}}), "holds an empty state dict"),
        ("x.pth", torch_bytes({"a": torch.zeros(2, device="meta")}), "a is sparse, quantized or without values"),
        ("x.pkl", pickle.dumps(["a"]), "holds no state dict"),
        ("x.pkl", pickle.dumps({1: 2}), "holds no state dict"),
        ("x.pkl", pickle.dumps({"blobs": [1]}), "holds no state dict"),
        ("x.pkl", pickle.dumps({"a": np.array(["text"])}), "holds arrays that are no tensors: "),
        ("x.pkl", b"\x8e" + b"\xff" * 8, "not a readable checkpoint: "),  # text longer than any memory
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    assert refusal(tmp_path / name, content).startswith(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights .*nowhere.pth not found"):
        read_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod."])  # of a model on several GPUs, compiled before
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {"state_dict": s}}])
def test_state_dicts_are_found_where_libraries_put_them(tmp_path: Path, wrap: Any, prefix: str) -> None:
    state = {f"{prefix}{key}": value for key, value in TENSORS.items()}
    torch.save(wrap(state), tmp_path / "x.pth")
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["model"]["a.weight"], TENSORS["a.weight"])


def test_arrays_beside_the_weights_are_admitted(tmp_path: Path) -> None:
    meta = {"PALETTE": np.zeros((2, 3), np.uint8), "mIoU": np.float64(3.5), "CLASSES": ("road", "car")}
    torch.save({"state_dict": TENSORS, "meta": meta}, tmp_path / "x.pth")
    data = read_checkpoint(tmp_path / "x.pth")
    assert data["meta"]["PALETTE"].shape == (2, 3) and data["meta"]["mIoU"] == 3.5
    assert classes_of(data) == {"semantic": ["road", "car"]}


def sidecar(decoder: str = "unet") -> dict[str, Any]:
    metadata = {"stuff_classes": ["ground", "box"], "label_map": {0: 0, 7: 1}, "stuff_colors": [[0, 0, 0], [9, 9, 9]]}
    config = f"MODEL:\n  SEM_SEG_HEAD: {{DECODER: {{NAME: '{decoder}'}}}}\nDATASETS: {{TRAIN: [not_here]}}\n"
    return {"format": 1, "metadata": metadata, "config": config}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_sidecar_comes_back_from_both_formats(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save({"model": TENSORS, SIDECAR: sidecar()}, file)
    else:
        shared = {"a.weight": TENSORS["a.weight"], "b.weight": TENSORS["a.weight"]}
        write_safetensors(file, shared, sidecar=sidecar())
        assert torch.equal(read_checkpoint(file)["model"]["b.weight"], TENSORS["a.weight"])
    assert read_sidecar(str(file)) == sidecar()
    config = config_of(str(file), ["MODEL.DEVICE", "cpu"])
    assert config.MODEL.SEM_SEG_HEAD.DECODER.NAME == "unet" and config.MODEL.WEIGHTS == str(file)
    assert config.MODEL.DEVICE == "cpu" and not config.DATASETS.TRAIN


def test_code_that_a_sidecar_names_is_imported_only_when_trusted(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"model": TENSORS, SIDECAR: sidecar("subprocess:Popen")}, file)
    with pytest.raises(UserError, match="DECODER.NAME subprocess:Popen is foreign code; allow it with --trust-code"):
        config_of(str(file))
    assert config_of(str(file), trust_code=True).MODEL.SEM_SEG_HEAD.DECODER.NAME == "subprocess:Popen"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, "carries no config: give --config-file"),
        ({"format": 2}, "sidecar of format 2, of a later seg_ext; takes 1"),
        ({"metadata": None}, "'metadata' in its sidecar is None; takes a dict"),
        ({"preprocessing": [1]}, r"'preprocessing' in its sidecar is \[1\]; takes a dict"),
        ({"metrics": "high"}, "'metrics' in its sidecar is 'high'; takes a dict"),
        ({"metrics": {"scores": 5}}, "'scores' in its sidecar is no dict"),
    ],
)
def test_a_checkpoint_without_a_config_of_ours_is_refused(tmp_path: Path, content: dict, text: str) -> None:
    torch.save({"model": TENSORS, SIDECAR: content}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=text):
        config_of(str(tmp_path / "x.pth"))


def test_a_sidecar_of_others_becomes_plain_values(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, SIDECAR: {"seed": torch.arange(2), "key": b"x"}}, tmp_path / "x.pth")
    assert read_sidecar(str(tmp_path / "x.pth")) == {"seed": [0, 1], "key": "b'x'"}


@pytest.mark.parametrize("content", [{"meta": {"CLASSES": 5}}, {"meta": [1]}, {SIDECAR: 5}, {SIDECAR: {"metadata": 1}}])
def test_class_names_that_are_none_are_no_names(content: dict[str, Any]) -> None:
    assert classes_of(content) == {}


def test_scores_become_plain_numbers() -> None:
    given = {
        "mIoU": np.float64(3.5),
        "IoU": torch.tensor([1.0, 2.0]),
        "names": ("a", "b"),
        "path": Path("x"),
        "none": None,
    }
    assert plain(given) == {"mIoU": 3.5, "IoU": [1.0, 2.0], "names": ["a", "b"], "path": "x", "none": None}
