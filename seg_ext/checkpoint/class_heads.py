"""Class scores taken over from a checkpoint of other classes, by the classes' names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ALIASES = {  # what VOC, COCO, ADE20K, Cityscapes and CamVid call the same thing
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "television receiver": "tv",
    "bike": "bicycle",
    "pedestrian": "person",
    "people": "person",
    "automobile": "car",
    "column pole": "pole",
    "pavement": "sidewalk",
    "signsymbol": "traffic sign",
    "sign symbol": "traffic sign",
    "__background__": "background",
}
_ENDINGS = re.compile(r"( other)?( merged| stuff| other)$")  # of COCO's names of stuff
_SCORES = re.compile(r"(?<!\.conv)(?<!\.up)(?<!\.norm)\.(weight|bias)$")  # bare convolutions of a decoder, not ours
_NOT_SCORES = ("laterals", "projections", "predictor.deconv")
_OF_INSTANCES = re.compile(r"(cls_score|bbox_pred|mask_head\.predictor)\.(weight|bias)$")


def canonical(name: str) -> str:
    """The one name of a class that goes by several: "aeroplane" and "Airplane" are "airplane"."""
    plain = " ".join(re.split(r"[\s_\-/]+", name.strip().lower())) if name != "__background__" else name
    plain = ALIASES.get(plain, plain)
    return ALIASES.get(_ENDINGS.sub("", plain), _ENDINGS.sub("", plain))


def common(theirs: Sequence[str], ours: Sequence[str]) -> list[int | None]:
    """For each of our classes its place among theirs, None where they have none of that name."""
    places = {canonical(name): place for place, name in reversed(list(enumerate(theirs)))}
    return [places.get(canonical(name)) for name in ours]


def transfer(
    state: dict[str, Tensor],
    model: Mapping[str, Tensor],
    theirs: Mapping[str, Sequence[str]],
    ours: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Put rows of class scores into our order, in place; classes that they lack keep what the model has.

    Args:
        state: the file's, by the model's names.
        model: the model's.
        theirs: class names of the file by "semantic" and "instance", in the order of their ids.
        ours: likewise of the model.

    Returns:
        Name of each tensor that was changed -> "n of K classes".
    """
    changed: dict[str, str] = {}
    for kind, start in (("semantic", "sem_seg_head."), ("instance", "roi_heads.")):
        old, new = list(theirs.get(kind, ())), list(ours.get(kind, ()))
        if not old or not new or [canonical(n) for n in old] == [canonical(n) for n in new]:
            continue
        places = common(old, new)
        found = sum(place is not None for place in places)
        for key in state.keys() & model.keys():
            if key.startswith(start) and found and _scores_classes(key, kind):
                value = _rows(key, state[key], model[key], len(old), places)
                if value is not None:
                    state[key], changed[key] = value, f"{found} of {len(new)} classes"
    return changed


def _scores_classes(key: str, kind: str) -> bool:
    if kind == "instance":
        return bool(_OF_INSTANCES.search(key))
    return bool(_SCORES.search(key)) and not any(part in key for part in _NOT_SCORES)


def _rows(key: str, value: Tensor, like: Tensor, old: int, places: Sequence[int | None]) -> Tensor | None:
    """The value in the shape of ``like``; None for a tensor that has no row a class, as of boxes of no class.

    A row a class, four for boxes, or one more for the background behind them; and square kernels from class to class
    (FCN's).
    """
    new = len(places)
    group, more = 4 if "bbox_pred." in key else 1, int("cls_score." in key)
    if value.shape[:1] != (group * old + more,) or like.shape[:1] != (group * new + more,):
        return None
    shared = [(i, place) for i, place in enumerate(places) if place is not None]
    rows = [(i * group + g, place * group + g) for i, place in shared for g in range(group)]
    rows += [(group * new, group * old)] * more
    here, there = (torch.tensor(column, device="cpu") for column in zip(*rows, strict=True))
    result = like.detach().cpu().clone()
    value = value.to(result.dtype)
    if value.dim() == 4 and value.shape[1] == old and like.shape[1] == new:
        if value.shape[2:] != like.shape[2:]:
            return None
        result[here[:, None], here] = value[there[:, None], there]
    elif value.shape[1:] == like.shape[1:]:
        result[here] = value[there]
    else:
        return None
    return result
