"""Morphology chains against brute force over pixels, and what they leave alone."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from seg_ext.postprocess import OPERATIONS, MorphologyChain
from seg_ext.postprocess.morphology import label_components

IGNORE = 255
EXAMPLES: dict[str, dict[str, Any]] = {
    "opening": {"radius": 2},
    "closing": {"radius": 2},
    "min_area": {"area": 12},
    "fill_holes": {},
    "largest_component": {},
    "smooth_borders": {"radius": 2},
}


def scene(seed: int, *, classes: int = 4, ignored: float = 0.05, size: tuple[int, int] = (40, 52)) -> np.ndarray:
    """Blobs of several classes with specks and holes, and ignored pixels."""
    draw = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(draw.normal(size=size), 2.5) for _ in range(classes)]
    labels = np.argmax(fields, axis=0)
    specks = draw.random(size) < 0.04
    labels[specks] = draw.integers(0, classes, int(specks.sum()))
    labels[ndimage.gaussian_filter(draw.normal(size=size), 1.5) > np.quantile(fields[0], 1 - ignored)] = IGNORE
    return labels


def run(labels: np.ndarray, *steps: dict[str, Any], classes: int = 4) -> np.ndarray:
    chain = MorphologyChain(steps, num_classes=classes, ignore=IGNORE)
    return chain(torch.from_numpy(labels)).numpy()


def picture(text: str) -> np.ndarray:
    """Digits are labels, dots ignored pixels."""
    return np.array([[IGNORE if x == "." else int(x) for x in row] for row in text.split()])


def flood(labels: np.ndarray, connectivity: int) -> Iterator[list[tuple[int, int]]]:
    """Pixels of each component, in the order of their first pixels."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if 0 < abs(y) + abs(x) <= (1 if connectivity == 4 else 2)]
    seen = np.zeros(labels.shape, bool)
    for seed in np.ndindex(*labels.shape):
        if seen[seed]:
            continue
        seen[seed], queue, found = True, deque([seed]), []
        while queue:
            at = queue.popleft()
            found.append(at)
            for step in steps:
                to = at[0] + step[0], at[1] + step[1]
                inside = 0 <= to[0] < labels.shape[0] and 0 <= to[1] < labels.shape[1]
                if inside and not seen[to] and labels[to] == labels[at]:
                    seen[to] = True
                    queue.append(to)
        yield found


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_components_of_all_labels_are_what_flooding_each_gives(seed: int, connectivity: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, (23, 31)) if seed else scene(0)
    components, of, areas = label_components(labels, connectivity=connectivity)
    for number, pixels in enumerate(flood(labels, connectivity)):
        assert (components[tuple(np.transpose(pixels))] == number).all()
        assert areas[number] == len(pixels) and of[number] == labels[pixels[0]]
    assert len(of) == number + 1 and areas.sum() == labels.size


def test_touching_classes_are_components_apart_and_corners_join_by_the_connectivity() -> None:
    labels = picture("1122 1122 2211 2211")
    assert len(label_components(labels, connectivity=4)[1]) == 4
    assert label_components(labels, connectivity=8)[1].tolist() == [1, 2]
    apart = picture("111222 111222")
    assert (run(apart, {"NAME": "largest_component"}, {"NAME": "min_area", "area": 6}) == apart).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_an_empty_chain_hands_the_same_labels_on(dtype: torch.dtype) -> None:
    labels = torch.from_numpy(scene(1)).to(dtype)
    before = labels.clone()
    assert MorphologyChain([], num_classes=4, ignore=IGNORE)(labels) is labels and torch.equal(labels, before)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("seed", range(2))
def test_every_operation_changes_something_but_no_ignored_pixel_and_no_input(name: str, seed: int) -> None:
    labels = scene(seed)
    given = torch.from_numpy(labels).to(torch.uint8)
    out = MorphologyChain([{"NAME": name, **EXAMPLES[name]}], num_classes=4, ignore=IGNORE)(given)
    assert out.dtype == torch.uint8 and (given.numpy() == labels).all()
    assert ((out.numpy() == IGNORE) == (labels == IGNORE)).all()
    assert (out.numpy() != labels).any()
    assert set(EXAMPLES) == set(OPERATIONS)


@pytest.mark.parametrize("name", ["min_area", "largest_component"])
@pytest.mark.parametrize("fill", [None, 0])
@pytest.mark.parametrize("seed", range(4))
def test_operations_on_components_are_idempotent_for_all_classes(name: str, fill: int | None, seed: int) -> None:
    step = {"NAME": name, **EXAMPLES[name], "fill": fill, "CLASSES": [0, 1, 2, 3] if fill is None else [1, 2, 3]}
    once = run(scene(seed, ignored=0.3), step)
    assert (run(once, step) == once).all()


@pytest.mark.parametrize("name", ["opening", "closing", "fill_holes"])
@pytest.mark.parametrize("seed", range(4))
def test_operations_on_shape_are_idempotent_for_one_class(name: str, seed: int) -> None:
    step = {"NAME": name, **EXAMPLES[name], "CLASSES": [1]}
    once = run(scene(seed, classes=2), step)
    assert (run(once, step) == once).all()


@pytest.mark.parametrize("seed", range(3))
def test_no_component_is_smaller_than_the_area_and_large_ones_keep_their_pixels(seed: int) -> None:
    labels = scene(seed, ignored=0)
    labels[labels == IGNORE] = 0
    out = run(labels, {"NAME": "min_area", "area": 12, "connectivity": 4})
    assert min(map(len, flood(out, 4))) >= 12
    for pixels in flood(labels, 4):
        at = tuple(np.transpose(pixels))
        assert len(pixels) < 12 or (out[at] == labels[at]).all()


def test_one_component_a_class_remains_the_largest() -> None:
    labels = picture("11000 11022 00000 20010 00000")
    assert (run(labels, {"NAME": "largest_component"}) == picture("11000 11022 00000 00000 00000")).all()
    assert (
        run(labels, {"NAME": "largest_component", "CLASSES": [2], "fill": 3})
        == np.where((labels == 2) & (np.arange(5)[:, None] == 3), 3, labels)
    ).all()


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("name", ["opening", "closing"])
def test_opening_and_closing_are_unions_of_discs_among_the_known_pixels(name: str, radius: int) -> None:
    labels = scene(5, classes=2)
    known = labels != IGNORE
    inside = (labels == 1) if name == "opening" else (labels != 1)
    ys, xs = np.indices(labels.shape)
    covered = np.zeros(labels.shape, bool)
    for y, x in zip(*np.nonzero(known), strict=True):
        disc = ((ys - y) ** 2 + (xs - x) ** 2 <= radius**2) & known
        if inside[disc].all():
            covered |= disc
    want = labels.copy()
    if name == "opening":
        want[(labels == 1) & ~covered] = 3
    else:
        want[known & ~covered] = 1
    step = {"NAME": name, "radius": radius, "CLASSES": [1], **({"fill": 3} if name == "opening" else {})}
    assert (want != labels).any() and (run(labels, step) == want).all()


def test_what_opening_takes_goes_to_the_nearest_other_class() -> None:
    labels = picture("00000000 00111000 00111111 22111000 22222222")
    want = picture("00000000 00011000 00111100 22211000 22222222")
    assert (run(labels, {"NAME": "opening", "radius": 1, "CLASSES": [1]}) == want).all()


def test_pixels_that_no_other_label_reaches_keep_theirs() -> None:
    labels = picture("1.000 .1.00 0.000 00000")
    step = {"NAME": "min_area", "area": 5, "connectivity": 4}
    assert (run(labels, step) == labels)[:2].all()
    assert (run(picture("1111 1111"), {"NAME": "min_area", "area": 50}) == 1).all()


def test_holes_are_what_a_class_encloses_up_to_an_area() -> None:
    labels = picture("0000000000 0111011110 0102012.10 0111010010 0000011110")
    full = picture("0000000000 0111011110 0112011.10 0111011110 0000011110")
    out = run(labels, {"NAME": "fill_holes", "CLASSES": [1]})
    full[2] = picture("0102011.10")[0]  # open to the right: no hole
    assert (out == full).all()
    assert (run(labels, {"NAME": "fill_holes", "CLASSES": [1], "area": 3}) == labels).all()
    ring = picture("01100 10010 01100")
    assert run(ring, {"NAME": "fill_holes", "CLASSES": [1]}).sum() == ring.sum() + 2
    assert (run(ring, {"NAME": "fill_holes", "CLASSES": [1], "connectivity": 4}) == ring).all()


def test_smooth_borders_take_the_most_frequent_label_of_the_disc() -> None:
    labels = scene(7)
    known = labels != IGNORE
    ys, xs = np.indices(labels.shape)
    want = labels.copy()
    for y, x in zip(*np.nonzero(known), strict=True):
        votes = np.bincount(labels[((ys - y) ** 2 + (xs - x) ** 2 <= 9) & known], minlength=4)
        if votes.max() > votes[labels[y, x]] and 2 in (labels[y, x], votes.argmax()):
            want[y, x] = votes.argmax()
    assert (run(labels, {"NAME": "smooth_borders", "radius": 3, "CLASSES": [2]}) == want).all()


def test_steps_run_in_order_each_on_its_classes() -> None:
    labels = scene(3)
    steps = [{"NAME": "closing", "radius": 2, "CLASSES": [2, 1]}, {"NAME": "min_area", "area": 20, "CLASSES": [1]}]
    assert (run(labels, *steps) == run(run(labels, steps[0]), steps[1])).all()
    assert (run(labels, *steps) != run(labels, *steps[::-1])).any()
    out = run(labels, {"NAME": "fill_holes", "CLASSES": [3]})
    assert set(out[out != labels].tolist()) <= {3}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"NAME": "dilate"}, "unknown morphology operation 'dilate'; known: opening, closing"),
        ({"radius": 1}, "unknown morphology operation None"),
        ({"NAME": "opening"}, "opening needs the argument 'radius'"),
        ({"NAME": "opening", "size": 1}, "opening has no argument 'size'; known: radius, fill"),
        ({"NAME": "opening", "radius": 0}, "radius must be at least 1, got 0"),
        ({"NAME": "opening", "radius": 1.5}, "radius must be at least 1, got 1.5"),
        ({"NAME": "min_area", "area": None}, "area must be at least 1, got None"),
        ({"NAME": "min_area", "area": 5, "connectivity": 6}, "connectivity must be 4 or 8, got 6"),
        ({"NAME": "min_area", "area": 5, "fill": 4}, "fill must be a class id from 1 to 3, got 4"),
        ({"NAME": "fill_holes", "CLASSES": [0]}, "CLASSES must be class ids from 1 to 3, got 0"),
        ({"NAME": "fill_holes", "CLASSES": 1}, "CLASSES must be a list of class ids, got 1"),
    ],
)
def test_a_bad_step_is_refused_in_one_line(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        MorphologyChain([step], num_classes=4, ignore=0)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [torch.zeros(4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)])
def test_what_is_no_label_map_is_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels must be \(H, W\) integers"):
        MorphologyChain([], num_classes=2)(labels)
