"""Rotation and elastic deformation: image, label, mask and coordinates move together."""

import numpy as np
import pytest

from seg_ext.data.warps import ElasticDeformation, RandomRotation, _cubic_weights

AUGMENTATIONS = [
    RandomRotation([25, 25], pad_value=[7, 8, 9]),
    ElasticDeformation(10, pad_value=[7, 8, 9]),
    ElasticDeformation(4, grid=5, pad_value=[7, 8, 9]),
]
each = pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["rotation", "elastic", "finer elastic"])


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(3)


def disc(shape, centre, radius):
    rows, columns = np.indices(shape)
    return np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1]) < radius


@each
def test_image_label_mask_and_points_stay_together(augmentation):
    shape, centres = (240, 320), np.array([[100.0, 80.0], [200.0, 140.0], [160.0, 180.0]])
    masks = [disc(shape, centre, 9) for centre in centres]
    label = sum(i * mask for i, mask in enumerate(masks, 1)).astype(np.uint16)
    image = np.repeat((label * 50).astype(np.uint8)[..., None], 3, axis=2)
    transform = augmentation.get_transform(image)
    moved = transform.apply_coords(centres)
    warped_label, warped_image = transform.apply_segmentation(label), transform.apply_image(image)
    for i, (mask, point) in enumerate(zip(masks, moved, strict=True), 1):
        rows, columns = np.nonzero(transform.apply_segmentation(mask))
        assert np.array_equal(np.argwhere(warped_label == i), np.stack([rows, columns], 1))
        assert np.abs([columns.mean() + 0.5 - point[0], rows.mean() + 0.5 - point[1]]).max() < 0.8
        assert (warped_image[int(point[1]), int(point[0])] == 50 * i).all()
    assert np.abs(moved - centres).max() > 1


@each
def test_what_comes_in_from_outside_is_padding(augmentation):
    image, label = np.full((60, 80, 3), 100, np.uint8), np.zeros((60, 80), np.int32)
    transform = augmentation.get_transform(image)
    outside = transform.apply_segmentation(label) == 255
    warped = transform.apply_image(image)
    assert outside.any() and (warped[outside] == [7, 8, 9]).all() and (warped[~outside] == 100).all()
    assert np.array_equal(transform.apply_segmentation(np.ones((60, 80), bool)), ~outside)


@each
def test_points_invert_the_field(augmentation):
    transform = augmentation.get_transform(np.zeros((90, 110, 3), np.uint8))
    there = transform.points[10:80:7, 10:100:9].reshape(-1, 2)
    want = np.stack(np.meshgrid(np.arange(10, 100, 9), np.arange(10, 80, 7)), 2).reshape(-1, 2) + 0.5
    np.testing.assert_allclose(transform.apply_coords(there), want, atol=0.02)


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_any_number_of_bands_and_floats(bands):
    image = np.random.rand(40, 50, bands).astype(np.float32)
    transform = ElasticDeformation(3).get_transform(image)
    warped = transform.apply_image(image)
    assert warped.shape == image.shape and warped.dtype == np.float32
    alone = transform.apply_image(image[..., -1:])
    np.testing.assert_array_equal(warped[..., -1:], alone)


def test_a_right_angle_is_the_exact_rotation():
    image = np.random.randint(0, 255, (31, 31, 3), np.uint8)
    np.testing.assert_array_equal(RandomRotation([90, 90]).get_transform(image).apply_image(image), np.rot90(image))


def test_no_strength_is_the_identity():
    image = np.random.randint(0, 255, (30, 40, 3), np.uint8)
    for augmentation in (ElasticDeformation(0), RandomRotation([0, 0]), ElasticDeformation(10, probability=0)):
        np.testing.assert_array_equal(augmentation.get_transform(image).apply_image(image), image)


def test_displacements_have_the_set_deviation_at_the_nodes():
    corners = []
    for _ in range(400):
        transform = ElasticDeformation(10).get_transform(np.zeros((64, 64, 3), np.uint8))
        corners.append(transform.points[0, 0] - 0.5)
    assert np.std(corners) == pytest.approx(10, rel=0.15)


def test_cubic_weights_interpolate_and_reproduce_a_line():
    at = np.linspace(0, 1, 33)
    weights = _cubic_weights(at, 5)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[[0, 8, 16, 24, 32]], np.eye(5), atol=1e-12)
    inner = (at >= 0.25) & (at <= 0.75)
    np.testing.assert_allclose((weights @ np.arange(5.0))[inner], 4 * at[inner], atol=1e-12)


@pytest.mark.parametrize("build", [lambda: RandomRotation([5]), lambda: RandomRotation([5, -5])])
def test_a_wrong_angle_is_refused(build):
    with pytest.raises(ValueError, match="least, greatest"):
        build()


@pytest.mark.parametrize("args", [{"std": -1}, {"grid": 1}, {"probability": 2}])
def test_a_wrong_strength_is_refused(args):
    with pytest.raises(ValueError, match="std .* grid .* probability"):
        ElasticDeformation(**args)
