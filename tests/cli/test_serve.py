"""``seg-ext serve``: what it refuses before it builds a model."""

import importlib.util

import pytest

from seg_ext.cli import serve
from seg_ext.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--weights is missing: give the checkpoint of a trained model"),
        (["--max-upload", "0"], "--max-upload 0.0: takes a number above 0"),
        (["--max-pixels", "nan"], "--max-pixels nan: takes a number above 0"),
        (["--queue", "-1"], "--queue -1: takes 0 or more"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: importlib.util.find_spec("sys"))
    pytest.importorskip("uvicorn", reason="needs the extra `demo`")
    assert main(["serve", "--no-page", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_missing_packages_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "gradio" else importlib.util.find_spec("sys"))
    assert main(["serve"]) == 2
    assert "serve needs gradio: pip install 'seg-ext[demo]'" in capsys.readouterr().err
