"""Downloads into a cache: resumed after a break, checked against the published hash, there whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlparse

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from seg_ext.errors import UserError

ATTEMPTS = 3  # each goes on where the one before it broke off
_ZOO = "dl.fbaipublicfiles.com"
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 18  # bytes
_PUBLISHED = (  # hashes that file names carry
    (re.compile(r"/model_final_([0-9a-f]{6})\.pkl$"), "md5"),  # detectron2's zoo
    (re.compile(r"-(?!20\d{6}\.)([0-9a-f]{8,64})\.\w+$"), "sha256"),  # torchvision, timm, mmsegmentation; no date
)


def download(url: str, *, cache: Path | None = None) -> Path:
    """The file of a URL; it is fetched once. Processes that want the same file wait for the first of them.

    Args:
        url: http or https.
        cache: folder; None for detectron2's (``$FVCORE_CACHE``, else ``~/.torch/iopath_cache``), where a file of its
            model zoo that detectron2 has fetched is found. Files of other hosts lie below the host's name, those that a
            query tells apart each in a folder of its own.

    Raises:
        UserError: no http URL, no connection, no such file, a break that ``ATTEMPTS`` did not get over, another hash,
            or a cache that cannot be written.
    """
    parts = urlparse(url)
    name = Path(unquote(parts.path).lstrip("/"))
    if parts.scheme not in ("http", "https") or not name.name or ".." in name.parts:
        raise UserError(f"{url}: takes http://HOST/FILE or https://HOST/FILE")
    folder = Path(get_cache_dir()) if cache is None else cache
    query = hashlib.sha256(parts.query.encode()).hexdigest()[:8] if parts.query else ""
    target = folder / name if parts.netloc == _ZOO else folder / parts.netloc.replace(":", "_") / query / name
    try:
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if not target.is_file():
                _fetch(url, target)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: no connection: {error.reason}; or fetch it by hand to {target}") from error
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from error
    return target


def _fetch(url: str, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            have, size = _go_on(url, partial)
            broken = f"it broke off at {have} of {size} bytes" if size is not None and have < size else ""
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            broken = f"it broke off: {error or type(error).__name__}"
        if not broken:
            break
        if attempt == ATTEMPTS:
            raise UserError(f"{url}: {broken}; the next call goes on from there")
    kind, published = _published(url)
    if published:
        found = _hash(partial, kind)
        if not found.startswith(published):
            partial.unlink()
            raise UserError(f"{url}: its {kind} begins with {found[: len(published)]}, published is {published}")
    partial.replace(target)
    _version_of(partial).unlink(missing_ok=True)


def _go_on(url: str, partial: Path) -> tuple[int, int | None]:
    """Add to the partial file what it lacks; bytes it then has, and should have where the server says so.

    The server is asked for the rest of that version alone of which the beginning is there.
    """
    version = _version_of(partial)
    have = partial.stat().st_size if partial.is_file() and version.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "seg_ext"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version.read_text())
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        partial.unlink()  # it has all, or more than there is
        return _go_on(url, partial)
    with answer:
        have = have if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = answer.headers.get("Content-Length")
        size = have + int(length) if length else None
        if not have:
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            version.write_text(tag) if tag and not tag.startswith("W/") else version.unlink(missing_ok=True)
        with partial.open("ab" if have else "wb") as stream, _bar(partial, have, size) as bar:
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    return partial.stat().st_size, size


def _hash(file: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _version_of(partial: Path) -> Path:
    """Beside a partial file: which version of the server's file it is the beginning of."""
    return partial.with_name(f"{partial.name}.version")


def _published(url: str) -> tuple[str, str]:
    path = urlparse(url).path
    return next(((kind, match[1]) for pattern, kind in _PUBLISHED if (match := pattern.search(path))), ("", ""))


def _bar(partial: Path, have: int, size: int | None) -> tqdm:
    name = partial.name.removesuffix(".partial")
    return tqdm(desc=f"download {name}", initial=have, total=size, unit="B", unit_scale=True, disable=None, leave=False)
