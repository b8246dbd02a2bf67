"""``seg-ext serve``: a page and a JSON endpoint to try a model on."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from seg_ext.cli.arguments import add_config_arguments
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from numpy.typing import NDArray

    from seg_ext.serve.service import Limits, Service

HELP = "a page and a JSON endpoint to try a model on"
LOOPBACK = ("127.0.0.1", "localhost")
_WAITING = 1000  # connections at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, where it listens, what a request may cost."""
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of a trained model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="(default: 7860)")
    parser.add_argument("--max-upload", type=float, default=20, metavar="MB", help="of an image file (default: 20)")
    parser.add_argument("--max-pixels", type=float, default=25, metavar="MILLIONS", help="of an image (default: 25)")
    parser.add_argument("--queue", type=int, default=16, metavar="N", help="images that may wait (default: 16)")
    parser.add_argument("--no-page", action="store_true", help="the endpoint alone, which needs no gradio")
    parser.add_argument("--trust-code", action="store_true", help="let the weights name a decoder outside seg_ext")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Build the model and serve until interrupted."""
    needed = ["fastapi", "uvicorn"] if args.no_page else ["fastapi", "uvicorn", "gradio"]
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'seg-ext[demo]'")
    for name, value in {"--max-upload": args.max_upload, "--max-pixels": args.max_pixels}.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} {value}: takes a number above 0")
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}: takes 1 to 65535")
    if args.queue < 0:
        raise UserError(f"--queue {args.queue}: takes 0 or more")
    import seg_ext

    seg_ext.register()
    import uvicorn

    from seg_ext.cli.export import config_for
    from seg_ext.engine.setup import start_logging
    from seg_ext.serve.app import build_app
    from seg_ext.serve.service import Limits

    start_logging()
    cfg = config_for(args)
    limits = Limits(megabytes=args.max_upload, megapixels=args.max_pixels, queue=args.queue)
    service = build_service(cfg, limits)
    app = build_app(service, hosts=LOOPBACK if args.host in LOOPBACK else ())
    page = "" if args.no_page else "  page;"
    if page:
        from seg_ext.serve.page import add_page

        app = add_page(app, service, title="seg-ext")
    print(f"http://{args.host}:{args.port}{page} /predict  JSON; /docs  its OpenAPI page", flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", limit_concurrency=_WAITING)
    return 0


def build_service(cfg: CfgNode, limits: Limits) -> Service:
    """A service of the config's model, with the mirror image for test-time augmentation unless it has keypoints."""
    import torch

    from seg_ext.engine.predictor import Predictor
    from seg_ext.engine.predictors import build_predictor
    from seg_ext.engine.sidecar import task_of
    from seg_ext.serve.service import Service

    predictor = Predictor(cfg)
    flips = not cfg.MODEL.KEYPOINT_ON  # else left and right would change places
    mirrored = cfg.clone()
    mirrored.defrost()
    mirrored.TEST.TTA.FLIP, mirrored.TEST.PRUNE = flips, ""  # predictor.model is the part already
    augmented = build_predictor(mirrored, predictor.model)
    task = task_of(cfg)

    @torch.no_grad()
    def flipped(image: NDArray[Any]) -> dict[str, Any]:
        return augmented([predictor.mapper.map_image(image)])[0]

    return Service(
        predictor,
        read=predictor.read,
        metadata=predictor.metadata,
        tasks=("semantic", "instance", "panoptic") if task == "panoptic" else (task,),
        image_format=cfg.INPUT.FORMAT,
        flipped=flipped if flips else None,
        limits=limits,
    )
