"""Predicting files: sources through a predictor into an output folder, resumably, in one process or several."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seg_ext.data.image_io import as_picture
from seg_ext.engine.predict_large import is_large, predict_large
from seg_ext.engine.predictor import Predictor
from seg_ext.engine.setup import interactive
from seg_ext.errors import UserError
from seg_ext.evaluation.image_writer import ImageWriter
from seg_ext.evaluation.output_files import replacing
from seg_ext.evaluation.prediction_writer import write_coco, write_panoptic_coco
from seg_ext.inference.manifest import Entry, Manifest
from seg_ext.inference.pipeline import Failure, Sample, run_pipeline
from seg_ext.inference.sources import Item, Source, open_source
from seg_ext.inference.video import VideoFile

FAILED = "failed.txt"
LARGE = 64.0  # million pixels
_FULL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # of the disk: the images to come would fail too


@dataclass(frozen=True)
class Shard:
    """This process's part of the inputs: every ``processes``-th, from ``rank``."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def from_environment(cls) -> Shard:
        """What torchrun says; the whole without it."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@dataclass
class Outcome:
    """What this process did: images predicted, inputs left alone that were done before, a line for each failure."""

    images: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)


def predict_sources(
    predictor: Predictor,
    sources: Sequence[Source],
    output: str | Path,
    *,
    save: Collection[str],
    batch_size: int = 1,
    threads: int = 2,
    frames: int | None = None,
    large: float = LARGE,
    resume: bool = False,
    shard: Shard | None = None,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Predict every image of the sources and write what is asked for below ``output``.

    Beside the files of each image (:class:`seg_ext.evaluation.image_writer.ImageWriter`) there are ``manifest/``, by
    which an interrupted run goes on, ``failed.txt``, a line for each input that could not be predicted, and with "json"
    ``predictions.json`` and ``panoptic.json`` of all images of all processes; the process that ends last writes them.

    Args:
        predictor: of the model.
        sources: see :func:`seg_ext.inference.sources.find_sources`; the same in all processes.
        output: folder.
        save: some of :data:`seg_ext.evaluation.image_writer.KINDS`. Overlays of videos are videos.
        batch_size: images a batch, at most.
        threads: that read, and as many that write.
        frames: of a video or camera, at most. An interrupt ends a camera as its end would.
        large: million pixels above which a TIFF or .npy is predicted in windows, see
            :func:`seg_ext.engine.predict_large.predict_large`.
        resume: leave inputs alone that an earlier run into this folder has done.
        shard: of this process; None for all.
        report: is called with a line for each failure.

    Raises:
        UserError: the output cannot be written, or is of another run that cannot be resumed so.
    """
    shard = shard or Shard()
    writer = ImageWriter(output, predictor.metadata, write=save)
    about = {**_model(predictor), "--save": sorted(set(save))}
    manifest = Manifest(writer.folder, about, resume=resume, rank=shard.rank, processes=shard.processes)
    run = _Run(predictor, writer, manifest, report)
    mine = sources[shard.rank :: shard.processes]
    left = [source for source in mine if source.key not in manifest.settled]
    run.outcome.skipped = len(mine) - len(left)
    in_parts = {source.key: source for source in left if is_large(source, large)}
    try:
        for source in in_parts.values():
            run.predict_in_parts(source, about)
        left = [source for source in left if source.key not in in_parts]
        run.predict(left, batch_size=batch_size, threads=threads, frames=frames)
        if manifest.covers([source.key for source in sources]):
            _finish(manifest, writer)
    finally:
        manifest.close()
    return run.outcome


class _Run:
    """One pass over sources, and what is known of those that are under way."""

    def __init__(
        self, predictor: Predictor, writer: ImageWriter, manifest: Manifest, report: Callable[[str], None]
    ) -> None:
        self.outcome = Outcome()
        self._predictor, self._writer, self._manifest, self._report = predictor, writer, manifest, report
        self._videos: dict[str, dict[str, VideoFile]] = {}  # by source, then task
        self._bar: Any = None
        self._taken: Counter[str] = Counter()  # images with a result, by source
        self._length: dict[str, int] = {}  # images of the sources that are read to their end
        self._sequences: set[str] = set()  # sources of several images that are under way
        self._faults: dict[str, str] = {}  # the first line about each source that is under way

    def predict(self, sources: Sequence[Source], *, batch_size: int, threads: int, frames: int | None) -> None:
        """Predict each image of the sources."""
        results = run_pipeline(
            self._items(sources, frames),
            read=self._read,
            predict=lambda inputs: [self._writer.keep(x) for x in self._predictor.predict(inputs)],
            write=self._write,
            batch_size=batch_size,
            threads=threads,
        )
        whole = False  # whether what a camera has given is all that is wanted
        self._bar = tqdm(total=len(sources), desc="predict", unit="input", disable=not interactive())
        try:
            for item, found in results:
                self._take(item, found)
        except KeyboardInterrupt:
            whole = any(source.kind == "camera" for source in sources)
            if not whole:
                raise
        finally:
            results.close()
            self._bar.close()
            cameras = {source.key for source in sources if source.kind == "camera"}
            for key in list(self._videos):
                self._close_videos(key, whole=whole and key in cameras)
        for key in cameras if whole else ():
            self._manifest.add(key, frames=self._taken[key])

    def predict_in_parts(self, source: Source, about: Mapping[str, Any]) -> None:
        """Predict one large image."""
        writer = self._writer
        try:
            found = predict_large(self._predictor, source, writer.folder, save=writer.kinds, about=about)
        except UserError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
                raise
            self._fail(source, source.key, error.line)
        else:
            self._manifest.add(source.key, **found)
            self.outcome.images += 1

    def _items(self, sources: Sequence[Source], frames: int | None) -> Iterator[Item]:
        mapper = self._predictor.mapper
        for source in sources:
            count = 0
            try:
                for item in open_source(source, mapper.image_format, bands=mapper.bands or 0, frames=frames):
                    count += 1
                    if item.key != source.key:
                        self._sequences.add(source.key)
                    yield item
            except UserError as error:
                count += 1
                yield Item(source.key, source.name, source, _raising(error))
            self._length[source.key] = count
            self._settle(source.key)

    def _read(self, item: Item) -> Sample:
        image = item.read()
        return Sample(item, self._predictor.mapper.map_image(image), image)

    def _write(self, sample: Sample, output: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows of an image, and its overlays where they are to go into a video."""
        item: Item = sample.item
        shown: dict[str, Any] = {}
        moving = item.source.kind in ("video", "camera")
        drawn = "overlay" in self._writer.kinds
        picture = as_picture(sample.image, self._predictor.mapper.image_format) if drawn else None
        rows = self._writer.write(
            item.name, item.key, picture, output, file=item.source.key, show=shown.update if moving else None
        )
        return rows, shown

    def _take(self, item: Item, found: Any) -> None:
        if isinstance(found, Failure):
            self._fail(item.source, item.key, found.line)
        else:
            rows, pictures = found
            self._show(item, pictures)
            self._manifest.add(item.key, **rows)
            self.outcome.images += 1
        self._taken[item.source.key] += 1
        self._settle(item.source.key)

    def _fail(self, source: Source, key: str, what: str) -> None:
        line = what if what.startswith(source.key) else f"{key}: {what}"
        self.outcome.failures.append(line)
        self._faults.setdefault(source.key, line)
        self._manifest.add(key, error=line)
        self._report(line)

    def _show(self, item: Item, pictures: dict[str, Any]) -> None:
        videos = self._videos.setdefault(item.source.key, {}) if pictures else {}
        for task, picture in pictures.items():
            if task not in videos:
                name = f"{item.source.name}_{task}.mp4"
                videos[task] = VideoFile(self._writer.folder / "overlay" / name, item.rate)
            videos[task].add(picture)

    def _settle(self, key: str) -> None:
        """Forget a source of which every image has its result; note what became of a sequence."""
        if self._length.get(key) != self._taken[key]:
            return
        count = self._length.pop(key)
        del self._taken[key]
        self._close_videos(key, whole=True)
        fault = self._faults.pop(key, None)
        if key in self._sequences:
            self._sequences.discard(key)
            self._manifest.add(key, **({"frames": count} if fault is None else {"error": fault}))
        self._bar.update()

    def _close_videos(self, key: str, *, whole: bool) -> None:
        for video in self._videos.pop(key, {}).values():
            video.close(whole=whole)


def _raising(error: UserError) -> Callable[[], Any]:
    def read() -> Any:
        raise error

    return read


def _model(predictor: Predictor) -> dict[str, Any]:
    """What the outputs depend on: the weights' file, and the config without where it runs."""
    cfg = predictor.config.clone()
    weights, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS, "", ""
    there = Path(weights).stat() if Path(weights).is_file() else None
    stamp = [there.st_size, there.st_mtime_ns] if there else []
    digest = hashlib.sha1(cfg.dump().encode(), usedforsecurity=False).hexdigest()
    return {"weights": [weights, *stamp], "config": digest}


def _finish(manifest: Manifest, writer: ImageWriter) -> None:
    """The files of the whole run, from what all processes noted."""

    def images() -> Iterator[tuple[int, Entry]]:
        return enumerate((entry for entry in manifest.entries() if "image" in entry), start=1)

    def rows() -> Iterator[str]:
        return (json.dumps({"id": number, **entry["image"]}) for number, entry in images())

    def annotations() -> Iterator[str]:
        found = ({"image_id": number, **row} for number, entry in images() for row in entry.get("annotations", ()))
        return (json.dumps({"id": number, **row}) for number, row in enumerate(found, start=1))

    def panoptic() -> Iterator[str]:
        found = ((number, entry["panoptic"]) for number, entry in images() if "panoptic" in entry)
        return (json.dumps({"image_id": number, **row}) for number, row in found)

    lines = list(dict.fromkeys(f"{entry['error']}\n" for entry in manifest.entries() if "error" in entry))
    failed = writer.folder / FAILED
    if lines:
        with replacing(failed) as path:
            path.write_text("".join(lines), encoding="utf-8")
    else:
        with suppress(FileNotFoundError):
            failed.unlink()
    if "json" in writer.kinds:
        write_coco(writer.folder / "predictions.json", rows(), annotations(), writer.metadata)
        if next(panoptic(), None):
            write_panoptic_coco(writer.folder / "panoptic.json", rows(), panoptic(), writer.metadata)
