"""``seg-ext analyze``: what the model of a yaml costs and sees, without data, weights or GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seg_ext.cli.arguments import add_config_arguments
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from seg_ext.engine.analyze import Analysis, Module

HELP = "parameters, multiply-adds, output shapes, memory and receptive fields of a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, image size, batch, depth of the tree, JSON file."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of the image, pixels (default: the config's training crop, else 512 512)",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="memory of this many images beside that of one")
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="levels of the tree of modules (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write the raw numbers there; - for the terminal, alone")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Analyze and print a table of modules, one of outputs and one of memory.

    The JSON holds ``config`` and the fields of :class:`seg_ext.engine.analyze.Analysis` with all modules; multiply-adds
    are plain numbers, memory is in bytes, a receptive field of 4097 pixels is the whole image and null is unknown.
    """
    for name, values in (("--size", args.size), ("--batch", [args.batch]), ("--depth", [args.depth])):
        if any(value is not None and value < 1 for value in values or []):
            raise UserError(f"{name} {' '.join(map(str, values))}: takes whole numbers of at least 1")
    import json
    from dataclasses import asdict

    import seg_ext

    seg_ext.register()
    from seg_ext.engine.analyze import analyze
    from seg_ext.engine.class_weights import resolve_class_weights
    from seg_ext.engine.setup import read_config, start_logging

    start_logging()
    args.opts = [*args.opts, "MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""]
    cfg = read_config(args)
    resolve_class_weights(cfg, training=False)
    result = analyze(cfg, size=args.size, batches=sorted({1, args.batch or 1}))
    text = json.dumps({"config": args.config_file, **asdict(result)}, indent=2) if args.json else ""
    if args.json == "-":
        print(text)
        return 0
    if args.json:
        try:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {args.json}: cannot be written: {error.strerror}") from error
    print(report(result, title=args.config_file, depth=args.depth))
    return 0


def report(result: Analysis, *, title: str, depth: int) -> str:
    """The tables and notes, as plain text."""
    blocks = [f"{title}: {_pixels(result.size)} pixels"]
    blocks += [_modules(result, depth), _outputs(result), _memory(result)]
    return "\n\n".join([*blocks, "\n".join(_notes(result))])


def _modules(result: Analysis, depth: int) -> str:
    rows = [("module", "class", "parameters", "share", "trainable", "buffers", "multiply-adds", "share")]
    whole = result.modules[0]
    for level, module in _tree(result.modules, depth):
        rows.append(
            (
                "  " * level + (module.name.rpartition(".")[2] or "model"),
                module.kind,
                _human(module.parameters),
                _share(module.parameters, whole.parameters),
                _human(module.trainable),
                _human(module.buffers),
                _human(module.multiply_adds),
                _share(module.multiply_adds, whole.multiply_adds),
            )
        )
    return _table(rows, left=2)


def _tree(modules: Sequence[Module], depth: int) -> list[tuple[int, Module]]:
    """Modules that hold or compute something, with their level; a child that is all of its parent costs no depth."""
    children: dict[str, list[Module]] = {}
    for module in modules[1:]:
        if module.parameters or module.multiply_adds:
            children.setdefault(module.name.rpartition(".")[0], []).append(module)

    def below(parent: Module, level: int, left: int) -> list[tuple[int, Module]]:
        found = children.get(parent.name, [])
        left -= not found or found[0].parameters < parent.parameters
        return [row for x in found if left >= 0 for row in [(level, x), *below(x, level + 1, left)]]

    return [(0, modules[0]), *below(modules[0], 1, depth)]


def _outputs(result: Analysis) -> str:
    from seg_ext.engine.analyze import PROBE_ROWS

    rows: list[tuple[str, ...]] = [("output", "channels", "height", "width", "stride", "offset", "receptive field")]
    for x in result.outputs:
        field = "unknown" if x.receptive_field is None else f"{x.receptive_field}"
        field = "whole image" if x.receptive_field == PROBE_ROWS else field
        rows.append((x.name, *(f"{n}" for n in (x.channels, x.height, x.width, x.stride, x.offset)), field))
    return _table(rows, left=1)


def _memory(result: Analysis) -> str:
    rows = [("peak memory", "images", "weights", "in all")]
    for x in result.memory:
        rows.append((x.mode, f"{x.batch}", _bytes(result.weights), "-" if x.peak is None else _bytes(x.peak)))
    return _table(rows, left=1)


def _notes(result: Analysis) -> list[str]:
    notes = ["Multiply-adds: of convolutions and matrix products, one image, evaluation; all else counts 0."]
    if result.uncounted:
        notes.append(f"Not counted: {', '.join(f'{n} {name}' for name, n in result.uncounted.items())}.")
    notes.append("Receptive field: rows of pixels that the middle cell sees; statistics of norms do not count.")
    notes.append("Memory: float32; training is forward and backward; no optimizer state, no workspace of kernels.")
    if result.padded != result.size:
        notes.append(f"The model pads the image to {_pixels(result.padded)} pixels.")
    if result.proposals:
        notes.append(
            f"Instance heads: on {result.proposals} proposals and {result.masks} masks or sets of keypoints an image "
            "(in training as many as are sampled); without the choice of proposals, ROI pooling, NMS, pasting and "
            "instance losses."
        )
    if result.left_out:
        notes.append(f"Left out: {', '.join(result.left_out)}.")
    for x in result.memory:
        if x.reason:
            notes.append(f"No memory of {x.mode} with {x.batch} image{'s' * (x.batch > 1)}: {x.reason}")
    return notes


def _pixels(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _human(number: int) -> str:
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if number >= 999.5 * 1000 ** (power - 1):
            return f"{number / 1000**power:.2f} {unit}"
    return f"{number}" if number else "-"


def _bytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 1000 * 2**20 else f"{number / 2**20:.1f} MiB"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part else "-"


def _table(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Columns two spaces apart, the first ``left`` ones on the left, a rule under the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(x.ljust(w) if i < left else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))
