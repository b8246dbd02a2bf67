"""Downloads from a server on this machine: resumed, checked, whole or not at all; and what names stand for."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seg_ext.checkpoint import download as module
from seg_ext.checkpoint import locate as locating
from seg_ext.checkpoint.download import download
from seg_ext.checkpoint.locate import HEURISTICS, check_name, locate
from seg_ext.errors import UserError

CONTENT = bytes(range(256)) * 40
HASH = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What it serves, how, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    version: str = '"1"'
    breaks: list[int] = field(default_factory=list)  # bytes of an answer after which each of the next ones breaks off
    asked: list[str | None] = field(default_factory=list)  # ranges


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if self.path.startswith("/missing"):
                self.send_error(404)
                return
            start = 0
            if wanted and self.headers.get("If-Range") == state.version:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(state.content) > 0:
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.version)
            self.end_headers()
            self.wfile.write(body[: state.breaks.pop(0)] if state.breaks else body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    file = download(f"{server.url}/a/w-{HASH[:8]}.pth", cache=tmp_path)
    assert file.read_bytes() == CONTENT and file.parts[-2:] == ("a", f"w-{HASH[:8]}.pth")
    assert download(f"{server.url}/a/w-{HASH[:8]}.pth", cache=tmp_path) == file and len(server.asked) == 1
    assert {path.name for path in file.parent.iterdir()} <= {file.name, f"{file.name}.lock"}


def test_it_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 500]
    assert download(f"{server.url}/w.pth", cache=tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_secured_connection_that_breaks_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, go_on = [ssl.SSLEOFError("EOF occurred in violation of protocol")], module._go_on

    def breaking(url: str, partial: Path) -> tuple[int, int | None]:
        if answers:
            raise answers.pop()
        return go_on(url, partial)

    monkeypatch.setattr(module, "_go_on", breaking)
    assert download(f"{server.url}/w.pth", cache=tmp_path).read_bytes() == CONTENT


def test_a_later_call_goes_on_too_and_nothing_half_is_there(server: Server, tmp_path: Path) -> None:
    server.breaks = [100] * module.ATTEMPTS
    with pytest.raises(UserError, match=r"w.pth: it broke off at 300 of 10240 bytes; the next call goes on from there"):
        download(f"{server.url}/w.pth", cache=tmp_path)
    assert not list(tmp_path.rglob("w.pth"))
    assert download(f"{server.url}/w.pth", cache=tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=300-"


def test_the_rest_of_another_version_is_not_joined(server: Server, tmp_path: Path) -> None:
    server.breaks = [100] * module.ATTEMPTS
    with pytest.raises(UserError):
        download(f"{server.url}/w.pth", cache=tmp_path)
    server.version, server.content = '"2"', CONTENT[::-1]
    assert download(f"{server.url}/w.pth", cache=tmp_path).read_bytes() == CONTENT[::-1]


def test_a_partial_file_that_is_complete_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / server.url.removeprefix("http://").replace(":", "_")
    folder.mkdir()
    (folder / "w.pth.partial").write_bytes(CONTENT + b"more")
    (folder / "w.pth.partial.version").write_text(server.version)
    assert download(f"{server.url}/w.pth", cache=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "kind"), [("w-00000000.pth", "sha256"), ("model_final_000000.pkl", "md5")])
def test_another_hash_than_the_published_one_is_refused(server: Server, tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"{name}: its {kind} begins with .*, published is 0000"):
        download(f"{server.url}/{name}", cache=tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] in (
        [],
        [f"{name}.partial.version"],
    )


def test_a_date_in_a_name_is_no_hash(server: Server, tmp_path: Path) -> None:
    assert download(f"{server.url}/w-20261121.pth", cache=tmp_path).read_bytes() == CONTENT


def test_files_that_only_their_query_tells_apart_do_not_take_each_others_place(server: Server, tmp_path: Path) -> None:
    one = download(f"{server.url}/get?id=1", cache=tmp_path)
    server.content = CONTENT[::-1]
    other = download(f"{server.url}/get?id=2", cache=tmp_path)
    assert one.read_bytes() == CONTENT and other.read_bytes() == CONTENT[::-1] and one.name == other.name == "get"
    assert download(f"{server.url}/get?id=1", cache=tmp_path) == one and len(server.asked) == 2


def test_what_cannot_be_fetched_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/missing.pth: the server answers 404 Not Found"):
        download(f"{server.url}/missing.pth", cache=tmp_path)
    with pytest.raises(UserError, match="http://127.0.0.1:9/w.pth: no connection: .* or fetch it by hand to"):
        download("http://127.0.0.1:9/w.pth", cache=tmp_path)
    for url in ("ftp://host/w.pth", "https://host/", "https://host/../w.pth"):
        with pytest.raises(UserError, match="takes http://HOST/FILE or https://HOST/FILE"):
            download(url, cache=tmp_path)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("http://host/w.pth", "http://host/w.pth"),
        (
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        ),
        (
            "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
            "https://dl.fbaipublicfiles.com/detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_3x/139514569/"
            "model_final_c10459.pkl",
        ),
        ("torchvision://resnet50", "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"),
        ("torchvision://ResNet50_Weights.IMAGENET1K_V1", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("timm://resnet18.a1_in1k", "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"),
    ],
)
def test_a_name_stands_for_its_zoos_file(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setattr(locating, "download", lambda asked: Path(asked))
    for given in (name, name + HEURISTICS):
        assert str(locate(given)) == str(Path(url))
        check_name(given)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere.pth", "weights nowhere.pth not found: MODEL.WEIGHTS takes a file, a URL, detectron2://"),
        ("nowhere.yaml", "weights nowhere.yaml not found"),
        ("torchvision://resnet55", "torchvision has none of that name; did you mean resnet50?"),
        ("timm://resnet188", "timm has none of that name; did you mean resnet18"),
        ("timm://resnet18.nope", "timm has none of that name; did you mean resnet18."),
        ("catalog://x", "not in detectron2's catalog"),
        ("other://x", "weights other://x not found: MODEL.WEIGHTS takes"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(name: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        locate(name)
    assert text in str(error.value) and "\n" not in str(error.value)
