"""The dense CRF against mean field with the kernels written out, and as a layer."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seg_ext.postprocess import DenseCRF, Kernel, permutohedral, probabilities_to_scores
from seg_ext.postprocess.permutohedral import NORMALISATIONS, Lattice

NORMALISED = [x for x in NORMALISATIONS if x != "none"]


def scene(size: int = 24, *, batch: int = 1, bands: int = 3, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy scores and an image of as many regions as classes, with some noise of its own."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, classes, 4, 4, generator=draw)
    labels = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False).argmax(1)
    colours = 255 * torch.rand(classes, bands, generator=draw)
    image = colours[labels].permute(0, 3, 1, 2) + 6 * torch.randn(batch, bands, size, size, generator=draw)
    noise = 1.5 * torch.randn(batch, classes, size, size, generator=draw)
    return 1.5 * F.one_hot(labels, classes).permute(0, 3, 1, 2) + noise, image


def matrix(features: np.ndarray, normalisation: str) -> np.ndarray:
    """The Gaussian kernel of (P, d) features written out, (P, P)."""
    kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(2) / 2)
    total = kernel.sum(1)
    left, right = {"none": (0, 0), "before": (0, 1), "after": (1, 0), "symmetric": (0.5, 0.5)}[normalisation]
    return kernel * total[:, None] ** -left * total[None] ** -right


def exact(
    scores: Tensor, image: Tensor, kernels: Sequence[Kernel], *, normalisation: str, penalty: np.ndarray, steps: int
) -> np.ndarray:
    """Mean field over one image: probabilities (K, H, W)."""
    classes, height, width = scores.shape
    places = np.indices((height, width)).reshape(2, -1).T
    filters = []
    for kernel in kernels:
        parts = [places / kernel.position]
        if kernel.values is not None:
            parts.append(image.double().numpy().reshape(len(image), -1).T / kernel.values)
        filters.append(matrix(np.hstack(parts), normalisation))
    unary = scores.double().numpy().reshape(classes, -1).T
    energy = unary
    for step in range(steps + 1):
        beliefs = np.exp(energy - energy.max(1, keepdims=True))
        beliefs /= beliefs.sum(1, keepdims=True)
        if step < steps:
            messages = sum(k.weight * (f @ beliefs) for k, f in zip(kernels, filters, strict=True))
            energy = unary - messages @ penalty.T
    return beliefs.T.reshape(classes, height, width)


POTTS = 1 - np.eye(3)
FULL = np.array([[-0.2, 1.0, 0.3], [0.8, 0.0, 1.2], [0.3, 0.9, -0.4]])


@pytest.mark.parametrize("penalty", [None, FULL], ids=["Potts", "full"])
@pytest.mark.parametrize("normalisation", NORMALISED)
def test_mean_field_is_the_exact_one_within_the_lattices_error(normalisation: str, penalty: np.ndarray | None) -> None:
    scores, image = scene()
    kernels = [Kernel(1.0, 1.5), Kernel(3.0, 8.0, 20.0)]
    given = None if penalty is None else torch.from_numpy(penalty)
    crf = DenseCRF(3, kernels, iterations=5, normalisation=normalisation, compatibility=given)
    found = crf(scores, image).softmax(1)[0].detach().numpy()
    table = POTTS if penalty is None else penalty
    want = exact(scores[0], image[0], kernels, normalisation=normalisation, penalty=table, steps=5)
    start = scores[0].softmax(0).numpy()
    assert np.abs(want - start).mean() > 0.12  # the CRF does much
    assert np.abs(found - want).mean() < 0.02
    assert (found.argmax(0) == want.argmax(0)).mean() > 0.985


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_kernels_of_positions_are_exact(normalisation: str) -> None:
    scores, image = scene(40)
    kernels = [Kernel(0.3, 1.2), Kernel(0.2, (4.0, 12.0))]  # tails within one tile, and beyond the image
    crf = DenseCRF(3, kernels, iterations=3, normalisation=normalisation).double()
    found = crf(scores.double(), image).softmax(1)[0].detach().numpy()
    want = exact(scores[0], image[0], kernels, normalisation=normalisation, penalty=POTTS, steps=3)
    assert np.abs(found - want).max() < 2e-3


@pytest.mark.parametrize(("dims", "error"), [(1, 0.01), (2, 0.01), (3, 0.02), (5, 0.03), (8, 0.06)])
def test_the_lattice_filters_as_the_gaussian_does_in_any_number_of_dimensions(dims: int, error: float) -> None:
    draw = np.random.default_rng(dims)
    features, x = draw.uniform(-1, 1, (400, dims)) * 3 / math.sqrt(dims), draw.random((400, 4))
    want = matrix(features, "symmetric") @ x
    found = Lattice(torch.from_numpy(features.T.copy()), normalisation="symmetric")(torch.from_numpy(x)).numpy()
    assert np.abs(found - want).mean() < error * want.mean()
    assert np.corrcoef((found - found.mean()).ravel(), (want - want.mean()).ravel())[0, 1] > 0.93


def test_the_lattices_mass_is_the_gaussians() -> None:
    rows = torch.linspace(-8, 8, 65, dtype=torch.float64)
    for dims in (1, 2):  # a fine grid: the filter of ones is the integral over the grid's step
        grid = torch.stack([x.flatten() for x in torch.meshgrid(*[rows] * dims, indexing="ij")])
        centre = Lattice(grid)(torch.ones(grid.shape[1], 1, dtype=torch.float64))[grid.shape[1] // 2]
        assert float(centre) * 0.25**dims == pytest.approx((2 * math.pi) ** (dims / 2), rel=0.03)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_the_transposed_filter_is_the_adjoint(normalisation: str) -> None:
    draw = torch.Generator().manual_seed(0)
    features = 3 * torch.rand(4, 200, generator=draw, dtype=torch.float64)
    x, y = torch.rand(2, 200, 3, generator=draw, dtype=torch.float64)
    lattice = Lattice(features, normalisation=normalisation)
    assert float((y * lattice(x)).sum()) == pytest.approx(float((lattice.transposed(y) * x).sum()), rel=1e-12)
    assert torch.equal(lattice.transposed.transposed(x), lattice(x))


def test_boxes_too_wide_to_number_their_cells_filter_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    features = 4 * torch.rand(6, 300, generator=torch.Generator().manual_seed(0))
    x, groups = torch.rand(300, 2), torch.arange(300) % 2
    numbered = Lattice(features, groups=groups)
    monkeypatch.setattr(permutohedral, "_WIDEST", 0)
    hashed = Lattice(features, groups=groups)
    assert hashed.vertices == numbered.vertices
    assert torch.allclose(hashed(x), numbered(x), rtol=1e-5)


@pytest.mark.parametrize("compatibility", [None, torch.from_numpy(POTTS)])
def test_zero_strength_hands_the_scores_on(compatibility: Tensor | None) -> None:
    scores, image = scene()
    crf = DenseCRF(3, [Kernel(0, 3), Kernel(0, 8, 20)], compatibility=compatibility)
    assert torch.equal(crf(scores, image), scores)
    assert torch.equal(DenseCRF(3, [Kernel(3, 3)], iterations=0)(scores, image), scores)
    assert torch.equal(DenseCRF(3, [])(scores, image), scores)


def test_potts_is_its_matrix() -> None:
    scores, image = scene()
    kernels = [Kernel(1.5, 2.0), Kernel(2.0, 8.0, 20.0)]
    plain, full = (DenseCRF(3, kernels, compatibility=x)(scores, image) for x in (None, torch.from_numpy(POTTS)))
    assert torch.allclose(plain.softmax(1), full.softmax(1), atol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_beliefs_sum_to_one_and_impossible_labels_stay_so(normalisation: str) -> None:
    scores, image = scene()
    scores[:, 1, :12] = -math.inf
    with torch.no_grad():
        beliefs = DenseCRF(3, [Kernel(3, 3), Kernel(10, 8, 20)], normalisation=normalisation)(scores, image).softmax(1)
    assert torch.allclose(beliefs.sum(1), torch.ones(1, 24, 24), atol=1e-5)
    assert (beliefs[:, 1, :12] == 0).all() and (beliefs >= 0).all()


def test_regions_of_the_image_win_over_noise_in_the_scores() -> None:
    draw = torch.Generator().manual_seed(3)
    truth = (torch.arange(32)[:, None] + torch.arange(32) > 30).long()
    image = 60.0 * truth + 6 * torch.randn(1, 3, 32, 32, generator=draw)
    scores = F.one_hot(truth).permute(2, 0, 1)[None] + 1.5 * torch.randn(1, 2, 32, 32, generator=draw)
    with torch.no_grad():
        refined = DenseCRF(2, [Kernel(1, 1), Kernel(5, 15, 20)])(scores, image)
    right = [float((x.argmax(1)[0] == truth).float().mean()) for x in (scores, refined)]
    assert right[0] < 0.75 and right[1] > 0.99


def test_images_of_a_batch_are_refined_apart_with_and_without_gradients() -> None:
    scores, image = scene(16, batch=3)
    crf = DenseCRF(3, [Kernel(1.0, 2.0), Kernel(3.0, 6.0, 20.0)], iterations=4)
    apart = torch.cat([crf(scores[i : i + 1], image[i : i + 1]) for i in range(3)])
    with torch.no_grad():
        assert torch.allclose(crf(scores, image), apart, atol=1e-4)
    assert torch.allclose(crf(scores, image), apart, atol=1e-4)


def test_bands_of_any_number_have_bandwidths_and_infinite_ones_leave_them_out() -> None:
    scores, image = scene(bands=6)
    some = DenseCRF(3, [Kernel(3, 8, [20, 30, math.inf, 20, math.inf, 25])])(scores, image)
    assert torch.equal(some, DenseCRF(3, [Kernel(3, 8, [20, 30, 20, 25])])(scores, image[:, [0, 1, 3, 5]]))
    scaled = DenseCRF(3, [Kernel(3, 8, 1)])(scores, image / 20)
    assert torch.allclose(scaled, DenseCRF(3, [Kernel(3, 8, 20)])(scores, image), atol=1e-3)
    shuffled = torch.randperm(24 * 24, generator=torch.Generator().manual_seed(0))

    def mixed(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, shuffled].view(x.shape)

    crf = DenseCRF(3, [Kernel(3, None, 20)])  # without positions a pixel's place is nothing
    assert torch.allclose(crf(mixed(scores), mixed(image)), mixed(crf(scores, image)), atol=1e-4)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_gradients_of_scores_weights_and_compatibility_are_those_of_differences(normalisation: str) -> None:
    scores, image = scene(4, batch=2)
    crf = DenseCRF(
        3,
        [Kernel(0.3, 1.0), Kernel([0.2, 0.4, 0.3], 2.0, 60.0)],
        iterations=2,
        normalisation=normalisation,
        compatibility=torch.from_numpy(FULL),
    ).double()

    def refined(scores: Tensor, weights: Tensor, compatibility: Tensor) -> Tensor:
        values = {"weights": weights, "compatibility": compatibility}
        return torch.func.functional_call(crf, values, (scores, image))

    inputs = [scores.double(), crf.weights.detach().clone(), crf.compatibility.detach().clone()]
    assert torch.autograd.gradcheck(refined, [x.requires_grad_() for x in inputs], fast_mode=True)


def test_a_crf_learns_its_weights() -> None:
    scores, image = scene(16, seed=1)
    teacher = DenseCRF(3, [Kernel(0.5, 1.5), Kernel(4.0, 8.0, 20.0)], iterations=2)
    target = teacher(scores, image).argmax(1)
    crf = DenseCRF(3, [Kernel(0.0, 1.5), Kernel(0.0, 8.0, 20.0)], iterations=2)
    losses = []
    for _ in range(8):  # signed descent: torch.optim takes seconds to import
        loss = F.cross_entropy(crf(scores, image), target)
        (slope,) = torch.autograd.grad(loss, [crf.weights])
        with torch.no_grad():
            crf.weights -= 0.5 * slope.sign()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    right = [(x.argmax(1) == target).float().mean() for x in (scores, crf(scores, image))]
    assert right[1] > 0.9 > right[0] + 0.1


def test_half_precision_and_bytes_go_in_and_scores_of_the_same_type_come_out() -> None:
    scores, image = scene()
    crf = DenseCRF(3, [Kernel(1, 2), Kernel(3, 8, 20)], iterations=2)
    whole = image.clamp(0, 255).round()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, want = crf(scores.half(), whole.to(torch.uint8)), crf(scores.half().float(), whole)
    assert found.dtype == torch.float16 and want.dtype == torch.float32
    assert torch.equal(found, want.half())


def test_probabilities_come_back_from_their_scores() -> None:
    given = torch.tensor([[0.0, 1.0], [0.25, 0.75]]).T[None, :, :, None]
    scores = probabilities_to_scores(given)
    assert scores.isfinite().all() and torch.allclose(scores.softmax(1), given, atol=1e-6)
    for bad, message in (
        (given * 1.5, "must sum to 1"),
        (given - 0.1, "must not be negative"),
        (given / 0, "sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            probabilities_to_scores(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0), "bandwidths of position must be positive and finite, got 0.0"),
        ((1.0, math.inf), "bandwidths of position must be positive and finite, got inf"),
        ((1.0, 3.0, [1.0, -2.0]), "bandwidths of values must be positive, got [1.0, -2.0]"),
        ((1.0, 3.0, math.nan), "bandwidths of values must be positive, got nan"),
        ((1.0, (3.0, 3.0, 3.0)), "position must be one bandwidth or (rows, columns)"),
        ((1.0, None), "a kernel needs a bandwidth"),
        ((1.0, None, math.inf), "a kernel needs a finite bandwidth"),
    ],
)
def test_a_bad_kernel_is_refused_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Kernel(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": -1}, "iterations must be a whole number from 0, got -1"),
        ({"normalisation": "both"}, "normalisation must be one of none, before, after, symmetric, got 'both'"),
        ({"compatibility": torch.zeros(2, 3)}, "compatibility must be 3 x 3, got (2, 3)"),
        ({"kernels": [Kernel([1.0, 2.0], 3.0)]}, "weight must be one number or 3, one a class, got 2"),
    ],
)
def test_a_bad_crf_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        DenseCRF(3, **{"kernels": [Kernel(1.0, 3.0)], **arguments})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scores", "image", "message"),
    [
        ((1, 3, 8, 8), (1, 3, 8, 9), "must agree in number, height and width"),
        ((2, 3, 8, 8), (1, 3, 8, 8), "must agree in number, height and width"),
        ((1, 2, 8, 8), (1, 3, 8, 8), "scores have 2 classes, the CRF 3"),
        ((3, 8, 8), (1, 3, 8, 8), "scores and image must be (N, _, H, W)"),
        ((1, 3, 8, 8), (1, 4, 8, 8), "the kernel has 3 bandwidths of values, the image 4 bands"),
        ((1, 3, 8, 8), None, "values that are not finite"),
    ],
)
def test_inputs_that_do_not_match_are_refused(scores: tuple, image: tuple | None, message: str) -> None:
    crf = DenseCRF(3, [Kernel(1.0, 3.0, [5.0, 5.0, 5.0])])
    given = torch.full((1, 3, 8, 8), math.nan) if image is None else torch.zeros(image)
    with pytest.raises(ValueError) as error:
        crf(torch.zeros(scores), given)
    assert message in str(error.value)
