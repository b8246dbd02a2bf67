"""Cards: what is known goes in, what does not fit the schema is refused, and the text says what the JSON says."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from seg_ext import load_config
from seg_ext.cli.main import main
from seg_ext.engine.card import make_card
from seg_ext.errors import UserError
from seg_ext.export.card import check_card, licence_of, markdown, write_card

CARD: dict[str, Any] = {
    "card": 1,
    "name": "model.onnx",
    "task": "semantic",
    "created": "2026-11-21 15:00 UTC",
    "versions": {"torch": "2.15.0"},
    "classes": {"semantic": ["ground", "crack"]},
    "metrics": [{"data": "rust_val", "date": "2026-11-20", "scores": {"sem_seg": {"mIoU": 71.234}}, "source": "x"}],
    "training": {"data": ["rust_train"], "config": "MODEL: {}\n"},
    "licence": {"data": "CC0", "weights": "CC0"},
    "preprocessing": {"channels": "RGB", "mean": [1.0, 2, 3], "std": [1, 1, 1], "resize": []},
    "export": {
        "file": "model.onnx",
        "format": "onnx",
        "bytes": 12345,
        "sha256": "ab",
        "dynamic": ["height"],
        "checks": [{"batch": 1, "height": 97, "width": 131, "difference": 1.5e-6, "agreement": 1.0}],
    },
    "limits": ["Only rust."],
}


def test_the_text_has_every_fact_of_the_json() -> None:
    text = markdown(CARD)
    for fact in ("ground, crack", "| rust_val | 2026-11-20 | sem_seg/mIoU | 71.23 |", "CC0", "Only rust.", "12,345"):
        assert fact in text
    assert "| 1 | 97 | 131 | 1.5e-06 | 100.0000% |" in text and "torch 2.15.0" in text


def changed(**paths: Any) -> dict[str, Any]:
    card = copy.deepcopy(CARD)
    for path, value in paths.items():
        node, (*parents, leaf) = card, path.split("__")
        for parent in parents:
            node = node[int(parent) if parent.isdigit() else parent]
        if value is ...:
            del node[leaf]
        else:
            node[leaf] = value
    return card


WRONG = {
    "task is missing": changed(task=...),
    "colour is unknown": changed(colour="red"),
    "task is 3; takes str": changed(task=3),
    "classes.semantic[1] is None; takes str": changed(classes={"semantic": ["a", None]}),
    "metrics[0].date is missing": changed(metrics__0__date=...),
    "export.checks[0].agreement is '1'; takes float": changed(export__checks__0__agreement="1"),
    "export.checks[0].agreement is nan": changed(export__checks__0__agreement=float("nan")),
    "preprocessing is list; takes an object": changed(preprocessing=[]),
    "limits is str; takes a list": changed(limits="none"),
    "export.bytes is True; takes int": changed(export__bytes=True),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_card_that_does_not_fit_is_not_written_and_the_key_is_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^model card: {re.escape(message)}$"):
        write_card(WRONG[message], tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_may_be_missing_may_be() -> None:
    check_card(changed(export=..., classes={}))


def test_licences_come_by_the_longest_name_that_fits() -> None:
    assert licence_of(["coco_2017_train"]).startswith("COCO annotations: CC BY 4.0")
    assert licence_of(["coco_stuff_171_train", "mine"]).startswith("COCO-Stuff")
    assert licence_of(["coco_stuff_171_train", "mine"]).endswith("mine: not stated") and licence_of([]) == "not stated"


def test_a_checkpoint_gets_its_card_with_the_scores_that_lie_beside_it(run_folder: Path, tmp_path: Path) -> None:
    results = run_folder / "results.json"
    results.write_text(json.dumps({"sem_seg": {"mIoU": 61.5, "IoU-box": None}, "about": {"data": {"toy_val": {}}}}))
    try:
        assert main(["card", str(run_folder / "model_final.pth"), "--output", str(tmp_path), "--licence", "CC0"]) == 0
    finally:
        results.unlink()
    card = json.loads((tmp_path / "model_final.card.json").read_text())
    assert card["metrics"][0]["data"] == "toy_val" and card["metrics"][0]["scores"] == {"sem_seg": {"mIoU": 61.5}}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", card["metrics"][0]["date"])
    assert card["classes"] == {"semantic": ["ground", "box"]} and card["licence"]["data"] == "CC0"
    assert card["training"]["data"] == ["export_toy"] and "PIXEL_MEAN" in card["training"]["config"]
    assert "toy_val" in (tmp_path / "model_final.card.md").read_text()


def test_the_card_of_a_download_has_the_scores_that_json_can_hold(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(run_folder / "model_final.pth", weights_only=True)
    scores = {"sem_seg": {"mIoU": 61.5, "IoU-box": float("nan")}, "validation": {"total_loss": float("inf")}}
    file = tmp_path / "w.pth"
    torch.save(content | {"sidecar": {"format": 1, "metrics": {"iteration": 4, "scores": scores}}}, file)
    monkeypatch.setattr("seg_ext.checkpoint.locate.download", lambda url: file)
    cfg = load_config(run_folder / "config.yaml", ["MODEL.WEIGHTS", "https://host/w.pth"])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    path, _ = write_card(make_card(cfg), tmp_path / "w")
    [entry] = json.loads(path.read_text())["metrics"]
    assert entry["scores"] == {"sem_seg": {"mIoU": 61.5}, "validation": {}} and entry["data"] == "validation"


def test_a_card_of_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(tmp_path / "none.pth")]) == 2
    assert "none.pth not found: takes a checkpoint" in capsys.readouterr().err
