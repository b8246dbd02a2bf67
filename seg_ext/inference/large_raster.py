"""Large rasters from file to file: a TIFF or .npy in, labels or probabilities out, where the input lies on the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from seg_ext.data.image_io import check_bands, check_format, to_format
from seg_ext.data.raster import open_raster
from seg_ext.data.raster_writing import RasterWriter
from seg_ext.errors import UserError
from seg_ext.inference.contract import Predict
from seg_ext.inference.large import LargeImage, read_manifest


def predict_raster(
    predict: Predict,
    source: str | Path,
    *,
    target: str | Path,
    format: str = "BGR",
    bands: int | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    window: Sequence[int] = (512, 512),
    **layout: Any,
) -> Path:
    """Predict an image that need not fit in memory; called again after a crash it goes on where that left off.

    Until it is whole the target is ``<target>.part``, beside which ``<target>.json`` tells what is done.

    Args:
        predict: a semantic model, or what wraps it.
        source: see :func:`seg_ext.data.raster.open_raster`.
        target: ".tif", ".tiff" or ".npy"; a TIFF has the source's tags of place and projection.
        format: INPUT.FORMAT, see :func:`seg_ext.data.image_io.read_image`; the image is not resized.
        bands: channels that the model takes; None for any.
        about: what else must be the same to go on, such as the name of the weights; JSON's types.
        progress: called with the number of bands done, and of all.
        window: see :class:`seg_ext.inference.large.LargeImage`.
        layout: its further arguments: overlap, blend, batch, output and memory.

    Returns:
        The target.

    Raises:
        UserError: a file that cannot be read or written, one of other bands than the model takes, or an unfinished
            target that was begun with something else.
    """
    check_format(format)
    target = Path(target)
    if target.is_file() and Path(source).is_file() and target.samefile(source):
        raise UserError(f"{target}: is the image itself; name another file for the prediction")
    with open_raster(source, whole=format == "BANDS") as raster:

        def read(top: int, left: int, height: int, width: int) -> NDArray[Any]:
            return to_format(source, raster.read(top, left, height, width), format, bands=bands)

        check_bands(str(source), read(0, 0, 1, 1), bands)
        image = LargeImage(predict, raster.shape[:2], read=read, window=window, **layout)
        stamp = Path(source).stat()
        known = {"source": str(Path(source).absolute()), "bytes": stamp.st_size, "time": stamp.st_mtime_ns}
        _run(image, target, geo=raster.geo, about={**(about or {}), **known}, progress=progress)
    return target


def _run(image: LargeImage, target: Path, *, geo: Sequence[Any], about: dict[str, Any], progress: Any) -> None:
    """Begin the target, or go on with it."""
    manifest = target.with_name(f"{target.name}.json")
    begun = read_manifest(manifest, image.about(about)) > 0
    if begun and not target.with_name(f"{target.name}.part").is_file():
        manifest.unlink()
        begun = False
    writer = RasterWriter(target, image.shape, dtype=image.dtype, geo=geo, resume=begun)
    try:
        image.run(writer.write, manifest=manifest, about=about, flush=writer.flush, progress=progress)
        writer.finish()
    finally:
        writer.close()
    manifest.unlink(missing_ok=True)
