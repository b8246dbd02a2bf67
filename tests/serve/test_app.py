"""The endpoint: right answers, limits and refusals in one sentence, a bounded queue under load."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from seg_ext.data.image_io import read_image
from seg_ext.errors import UserError
from seg_ext.serve.service import Limits, Refused, Service

testclient = pytest.importorskip("starlette.testclient", reason="needs the extra `demo`")
httpx = pytest.importorskip("httpx", reason="needs the extra `demo`")
result_html = pytest.importorskip("seg_ext.serve.result", reason="needs the extra `demo`").result_html
build_app = pytest.importorskip("seg_ext.serve.app", reason="needs the extra `demo`").build_app

HOST = "http://127.0.0.1"
METADATA = Metadata(stuff_classes=["ground", "<crack>"], stuff_colors=[[0, 0, 0], [255, 0, 0]], thing_classes=["cell"])


def predict(image: np.ndarray) -> dict[str, Any]:
    """Scores +-4 about a grey level of 128, and an object of score 0.7 there."""
    if min(image.shape[:2]) < 4:
        raise UserError("the backbone takes images of 4 or more pixels a side")
    if image.shape[0] == 13:
        raise RuntimeError("/secret/model.py: out of luck")
    bright = torch.from_numpy(image[..., 0] > 128)
    scores = torch.stack([torch.where(bright, -4.0, 4.0), torch.where(bright, 4.0, -4.0)])
    found = Instances(image.shape[:2])
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    found.scores, found.pred_classes, found.pred_masks = torch.tensor([0.7]), torch.tensor([0]), bright[None]
    segments = [{"id": 1, "isthing": True, "category_id": 0}, {"id": 2, "isthing": False, "category_id": 0}]
    ids = torch.where(bright, 1, 2)
    return {"sem_seg": scores, "instances": found, "panoptic_seg": (ids, segments)}


def unsure(image: np.ndarray) -> dict[str, Any]:
    """What the mirror image is to add: nothing is known."""
    return {"sem_seg": torch.zeros(2, *image.shape[:2])}


def make_service(**limits: Any) -> Service:
    """The stub with limits of one megabyte and 10,000 pixels unless said otherwise."""
    return Service(
        predict,
        read=lambda file: read_image(file, "RGB"),
        metadata=METADATA,
        tasks=("semantic", "instance", "panoptic"),
        image_format="RGB",
        flipped=unsure,
        limits=Limits(**{"megabytes": 1, "megapixels": 0.01, **limits}),
    )


def picture(height: int = 40, width: int = 60, suffix: str = ".png", dtype: type = np.uint8) -> bytes:
    """A file of a dark image whose left quarter is bright."""
    pixels = np.zeros((height, width, 3), dtype)
    pixels[:, : width // 4] = np.iinfo(dtype).max
    return cv2.imencode(suffix, pixels)[1].tobytes()


def deep(bands: int) -> bytes:
    """A TIFF of few bytes that holds many."""
    stream = io.BytesIO()
    pixels = np.zeros((40, 60, bands), np.uint8)
    tifffile.imwrite(stream, pixels, photometric="minisblack", planarconfig="contig", compression="zlib")
    return stream.getvalue()


def client(**limits: Any) -> Any:
    app = build_app(make_service(**limits), hosts=["127.0.0.1", "localhost"])
    return testclient.TestClient(app, base_url=HOST)


def pixels_of(text: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".tiff", np.uint16)])
def test_an_image_gets_its_label_map_areas_masks_and_segments(suffix: str, dtype: type) -> None:
    found = client().post("/predict", content=picture(suffix=suffix, dtype=dtype)).json()
    expected = np.zeros((40, 60), np.uint8)
    expected[:, :15] = 1
    assert (found["height"], found["width"]) == (40, 60)
    assert (pixels_of(found["semantic"]["labels"]) == expected).all()
    assert found["semantic"]["areas"] == [
        {"id": 0, "name": "ground", "pixels": 1800, "share": 0.75},
        {"id": 1, "name": "<crack>", "pixels": 600, "share": 0.25},
    ]
    (cell,) = found["instance"]
    assert (mask_util.decode(cell["segmentation"]) == expected).all()
    assert cell["name"] == "cell" and cell["area"] == 600 and cell["box"] == [0, 0, 15, 40]
    ids = pixels_of(found["panoptic"]["ids"])[..., ::-1] @ [1, 256, 65536]
    assert (ids == np.where(expected, 1, 2)).all()
    assert [(s["id"], s["name"], s["thing"], s["area"]) for s in found["panoptic"]["segments"]] == [
        (1, "cell", True, 600),
        (2, "ground", False, 1800),
    ]


def test_options_choose_the_task_the_least_score_the_mirror_image_and_the_uncertainty() -> None:
    post = client().post
    image = picture()
    found = post("/predict?task=semantic&uncertainty=true", content=image).json()
    assert set(found) == {"height", "width", "semantic", "uncertainty"}
    p = torch.tensor([4.0, -4.0]).softmax(0)
    assert found["uncertainty"]["mean"] == pytest.approx(-(p * p.log2()).sum().item(), rel=1e-4)
    found = post("/predict?tta=1&task=semantic&uncertainty=1", content=image).json()
    assert found["uncertainty"]["mean"] == pytest.approx(1) and (pixels_of(found["uncertainty"]["map"]) == 255).all()
    assert post("/predict?task=instance&threshold=0.8", content=image).json()["instance"] == []


BAD: dict[str, tuple[bytes, int, str]] = {  # content, status, sentence
    "text": (b"no image at all", 415, "The image: "),
    "nothing": (b"", 415, "The request has no body; send the bytes of an image file."),
    "half a PNG": (picture()[:150], 415, "The image: "),
    "half a TIFF": (picture(suffix=".tiff")[:90], 415, "The image: "),
    "too many bytes": (bytes(1_000_001), 413, "The file is too large; 1 MB are the limit."),
    "too many bands": (deep(200), 413, "The image has 200 bands of 60x40 pixels, which is too many."),
    "too many pixels": (picture(101, 100), 413, "The image has 100x101 pixels; 0.01 million are the limit."),
    "too small for the model": (picture(3, 3), 422, "The model does not take this image: the backbone takes "),
    "a failing model": (picture(13, 20), 500, "The model failed on this image."),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_refused_in_a_sentence_that_names_nothing_of_the_server(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, status, sentence = BAD[case]
    answer = client().post("/predict", content=content)
    assert answer.status_code == status, answer.text
    said = answer.json()["detail"]
    assert said.startswith(sentence) and "\n" not in said
    assert not [word for word in ("/tmp", "seg-ext-", "secret", ".py", "Traceback", 'File "') if word in answer.text]


def test_whatever_a_decoder_stumbles_over_is_an_image_that_cannot_be_read() -> None:
    def read(file: Path) -> np.ndarray:
        raise zlib.error(f"Error -3 while decompressing {file}")

    service = make_service()
    service._read = read
    answer = testclient.TestClient(build_app(service)).post("/predict", content=picture())
    assert (answer.status_code, answer.json()) == (415, {"detail": "This is no image that can be read."})


def test_a_model_that_gives_labels_alone_has_no_uncertainty_to_show() -> None:
    service = make_service()
    service._predict = lambda image: {"sem_seg_labels": torch.zeros(image.shape[:2], dtype=torch.int64)}
    assert service.segment(picture()).scene.semantic is not None
    with pytest.raises(Refused, match="Uncertainty is of scores, and this model gives labels alone."):
        service.segment(picture(), uncertainty=True)


async def raw(app: Any, receive: Callable[[], Any]) -> dict[str, Any]:
    """The first message that the application sends for a body that comes in parts and says no length."""
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("x", 1)}, receive, send)
    return messages[0]


def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    taken = []

    async def receive() -> dict[str, Any]:
        taken.append(1)
        return {"type": "http.request", "body": bytes(100_000), "more_body": len(taken) < 100}

    assert asyncio.run(raw(build_app(make_service()), receive))["status"] == 413
    assert len(taken) == 11


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    assert asyncio.run(raw(build_app(make_service(seconds=0.05)), receive))["status"] == 408


def test_a_body_that_breaks_off_is_no_failure_of_the_server() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert asyncio.run(raw(build_app(make_service()), receive))["status"] == 408


@pytest.mark.parametrize("query", ["task=depth", "threshold=2", "threshold=much", "tta=perhaps"])
def test_an_option_out_of_range_is_a_422(query: str) -> None:
    assert client().post(f"/predict?{query}", content=picture()).status_code == 422


def test_another_host_name_is_refused_so_that_foreign_pages_do_not_get_in() -> None:
    assert client().post("/predict", content=picture(), headers={"host": "evil.example"}).status_code == 400


def test_the_openapi_page_describes_body_options_answer_and_refusals() -> None:
    api = client()
    described = api.get("/openapi.json").json()
    post = described["paths"]["/predict"]["post"]
    assert post["requestBody"]["content"] == {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    assert {p["name"] for p in post["parameters"]} == {"task", "threshold", "tta", "uncertainty"}
    assert {"200", "408", "413", "415", "422", "500", "503"} <= set(post["responses"])
    assert "segmentation" in described["components"]["schemas"]["Instance"]["properties"]
    assert api.get("/docs").status_code == 200 and api.get("/health").json()["megabytes"] == 1


async def flood(app: Any, bodies: list[bytes]) -> list[tuple[int, str]]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=HOST, timeout=60) as http:
        answers = await asyncio.gather(*(http.post("/predict?task=semantic", content=body) for body in bodies))
    return [(answer.status_code, answer.text) for answer in answers]


@pytest.mark.parametrize(("queue", "busy"), [(300, False), (4, True)])
def test_two_hundred_requests_at_once_of_which_a_third_is_bad_are_answered_or_sent_away(queue: int, busy: bool) -> None:
    service = make_service(queue=queue)
    good, bad = picture(), [content for content, *_ in BAD.values()]
    bodies = [bad[i // 3 % len(bad)] if i % 3 == 0 else good for i in range(200)]
    answers = asyncio.run(flood(build_app(service), bodies))
    assert not [text for _, text in answers if "/tmp" in text or "Traceback" in text]
    for index, (status, text) in enumerate(answers):
        expected = BAD[list(BAD)[index // 3 % len(bad)]][1] if index % 3 == 0 else 200
        assert status == expected or (busy and status == 503 and "are waiting already" in text)
    statuses = [status for status, _ in answers]
    assert statuses.count(200) >= (1 if busy else 133) and (503 in statuses) == busy
    for _ in range(queue + 1):  # every place in the queue is free again
        assert service._slots.acquire(blocking=False)
    assert not service._slots.acquire(blocking=False)


def test_nothing_stays_in_memory_of_requests_that_were_answered() -> None:
    service = make_service(queue=100)
    app, bodies = build_app(service), [picture(90, 100), *(content for content, *_ in BAD.values())] * 6
    asyncio.run(flood(app, bodies))
    tracemalloc.start()
    try:
        asyncio.run(flood(app, bodies))
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 300_000  # bytes; an image and its answer are 90,000 each


def test_the_model_runs_one_image_at_a_time() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def slow(image: np.ndarray) -> dict[str, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1
        return predict(image)

    service = make_service(queue=20)
    service._predict = slow
    answers = asyncio.run(flood(build_app(service), [picture()] * 8))
    assert [status for status, _ in answers] == [200] * 8 and most == 1


def test_the_page_shows_overlay_and_areas_and_downloads_and_refers_to_no_file() -> None:
    service = make_service()
    found = service.segment(picture(), uncertainty=True)
    html = result_html(found, service, "semantic")
    assert "&lt;crack&gt;</td><td>600</td><td>25.0%</td>" in html and "<crack>" not in html
    assert html.count('src="data:image/png;base64,') == 2 and "Uncertainty: " in html and "/tmp" not in html
    overlay = pixels_of(html.split('src="data:image/png;base64,')[1].split('"')[0])
    assert overlay.shape[1] >= 60 and len(np.unique(overlay.reshape(-1, 3), axis=0)) > 2
    html = result_html(found, service, "instance")
    link = html.split('download="instances.json" href="data:application/json;base64,')[1].split('"')[0]
    coco = json.loads(base64.b64decode(link))
    assert coco["annotations"][0]["bbox"] == [0, 0, 15, 40] and coco["categories"] == [{"id": 0, "name": "cell"}]
