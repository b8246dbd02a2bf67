"""The page in headless Chromium: an image is dropped, the table read, the map downloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
SCREENSHOT = ROOT / "docs" / "serve.jpg"
DEMO, STRIP = ROOT / "output/demo/model_final.pth", ROOT / "datasets/nuclei/test/images/img2d.png"  # of `make demo`
PORT = 7861
URL = f"http://127.0.0.1:{PORT}"
SECONDS = 180  # for the server to come up


@pytest.fixture
def trained(toy_config: Path, toy_folder: Path, tmp_path: Path) -> tuple[Path, Path, tuple[str, str]]:
    """Weights, an image and the classes: the demo's, where it has been made, else of 4 iterations on rectangles."""
    if DEMO.is_file() and STRIP.is_file():
        return DEMO, STRIP, ("background", "nucleus")
    from seg_ext.cli.main import main

    assert main(["train", "--config-file", str(toy_config), "DATASETS.TEST", "()"]) == 0
    return tmp_path / "run" / "model_final.pth", toy_folder / "images" / "1.png", ("ground", "box")


@pytest.fixture
def server(trained: tuple[Path, Path, tuple[str, str]], tmp_path: Path) -> Iterator[str]:
    """``seg-ext serve`` in a process of its own."""
    command = [sys.executable, "-m", "seg_ext", "serve", "--weights", str(trained[0]), "--port", str(PORT)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until and process.poll() is None and not _answers():
                time.sleep(1)
            assert _answers(), (tmp_path / "log").read_text()
            yield URL
        finally:
            process.terminate()
            process.wait()


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_an_image_dropped_on_the_page_gets_overlay_table_and_downloads(
    server: str, trained: tuple[Path, Path, tuple[str, str]], tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    _, image, classes = trained
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server, timeout=60_000)
        page.get_by_label("semantic").check()
        page.locator("#image input[type=file]").set_input_files(str(image))
        page.wait_for_selector("#areas", timeout=60_000)
        rows = page.locator("#areas tr").all_inner_texts()
        with page.expect_download() as download:
            page.get_by_role("link", name="PNG", exact=True).click()
        download.value.save_as(tmp_path / "labels.png")
        if image == STRIP:
            page.get_by_label("panoptic").check()
            page.get_by_role("button", name="Segment").click()
            page.wait_for_function("document.querySelectorAll('#areas tr').length > 9", timeout=60_000)
            page.screenshot(path=SCREENSHOT, type="jpeg", quality=70)
        browser.close()
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
    labels = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == cv2.imread(str(image)).shape[:2] and rows[0].split() == ["class", "pixels", "area"]
    named = {row.split()[0]: int(row.split()[1].replace(",", "")) for row in rows[1:]}
    counts = {name: int((labels == i).sum()) for i, name in enumerate(classes)}
    assert named == {name: count for name, count in counts.items() if count}
