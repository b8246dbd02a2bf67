"""TEST.REFINE: the dense CRF and morphology around any predictor."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seg_ext.config import get_cfg, load_config
from seg_ext.errors import UserError
from seg_ext.inference.refine import Refine, Refiner, build_dense_crf
from seg_ext.inference.stack import stack_predictors
from seg_ext.postprocess import MorphologyChain

OPENING = {"NAME": "morphology", "STEPS": [{"NAME": "opening", "CLASSES": [1], "radius": 1}]}
CRF = {"NAME": "dense_crf", "bi_xy_std": 8, "bi_rgb_std": 20, "iterations": 3}


class Says:
    """A predictor that gives what it is told, for any input."""

    def __init__(self, **output: Any) -> None:
        self.output = output

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [dict(self.output) for _ in batched_inputs]


@pytest.fixture
def scores() -> Tensor:
    return 2 * torch.randn(3, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def image() -> Tensor:
    return (255 * torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1))).to(torch.uint8)


def refined(steps: list[dict[str, Any]], image: Tensor, **output: Any) -> dict[str, Any]:
    classes = len(output.get("sem_seg", [0, 0]))
    return Refine(Says(**output), Refiner(steps, num_classes=classes))([{"image": image}])[0]


@pytest.mark.parametrize("steps", [[], [{"NAME": "morphology", "STEPS": []}]])
def test_an_empty_chain_hands_the_output_on_bit_for_bit(
    steps: list[dict[str, Any]], scores: Tensor, image: Tensor
) -> None:
    found = refined(steps, image, sem_seg=scores, extra=1)
    assert found.keys() == {"sem_seg", "extra"} and found["sem_seg"] is scores


def test_the_crf_is_that_of_its_arguments_as_log_probabilities(scores: Tensor, image: Tensor) -> None:
    found = refined([CRF], image, sem_seg=scores)["sem_seg"]
    crf = build_dense_crf(3, bi_xy_std=8, bi_rgb_std=20, iterations=3)
    with torch.no_grad():
        want = crf(scores[None], image[None].float())[0]
    assert found.dtype == torch.float32 and torch.allclose(found, want.log_softmax(0), atol=1e-5)
    assert (found.argmax(0) != scores.argmax(0)).float().mean() > 0.1  # it did something
    assert torch.allclose(found.exp().sum(0), torch.ones(20, 24), atol=1e-5) and found.isfinite().all()


def test_zero_weights_change_no_probability(scores: Tensor, image: Tensor) -> None:
    found = refined([{"NAME": "dense_crf", "bi_w": 0, "pos_w": 0}], image, sem_seg=scores)["sem_seg"]
    assert torch.equal(found, scores.log_softmax(0))


def test_the_image_is_brought_to_the_size_of_the_output(scores: Tensor, image: Tensor) -> None:
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    small = torch.nn.functional.interpolate(large[None].float(), (20, 24), mode="bilinear", antialias=True)[0]
    found = refined([CRF], large, sem_seg=scores)["sem_seg"]
    assert torch.equal(found, refined([CRF], small, sem_seg=scores)["sem_seg"])


def test_morphology_gives_labels_and_leaves_the_scores(scores: Tensor, image: Tensor) -> None:
    found = refined([OPENING], image, sem_seg=scores)
    chain = MorphologyChain(OPENING["STEPS"], num_classes=3)
    assert found["sem_seg"] is scores and found["sem_seg_labels"].dtype == torch.int64
    assert torch.equal(found["sem_seg_labels"], chain(scores.argmax(0)))
    assert not torch.equal(found["sem_seg_labels"], scores.argmax(0))


def test_morphology_begins_with_labels_that_are_there_unless_a_crf_changed_the_scores(
    scores: Tensor, image: Tensor
) -> None:
    labels = torch.zeros(20, 24, dtype=torch.int64)
    labels[5:9, 5:9] = 1
    labels[15, 15] = 1
    found = refined([OPENING], image, sem_seg=scores, sem_seg_labels=labels)["sem_seg_labels"]
    assert found[15, 15] == 0 and found[5:9, 5:9].sum() == 12  # the disc leaves the corners
    after = refined([CRF, OPENING], image, sem_seg=scores, sem_seg_labels=labels)
    chain = MorphologyChain(OPENING["STEPS"], num_classes=3)
    assert torch.equal(after["sem_seg_labels"], chain(after["sem_seg"].argmax(0)))
    assert "sem_seg_labels" not in refined([CRF], image, sem_seg=scores, sem_seg_labels=labels)


class Fusing(torch.nn.Module):
    """A model that keeps the labels its fusion was given."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert all(x["fuse"] is False for x in batched_inputs)
        scores = torch.zeros(2, 9, 9)
        scores[1, 2:7, 2:7] = 1
        scores[1, 0, 8] = 1
        return [{"sem_seg": scores} for _ in batched_inputs]

    def finish(self, output: dict[str, Any]) -> dict[str, Any]:
        return output | {"panoptic_seg": (output.get("sem_seg_labels", output["sem_seg"].argmax(0)).int(), [])}


def test_panoptic_fusion_sees_the_refined_labels_and_an_empty_list_of_steps_wraps_nothing() -> None:
    keys = get_cfg().TEST
    model = Fusing()
    assert stack_predictors(model, keys) is model
    keys.REFINE = [OPENING]
    (found,) = stack_predictors(model, keys, num_classes=2)([{"image": torch.zeros(3, 9, 9)}])
    assert found["panoptic_seg"][0][0, 8] == 0 and found["panoptic_seg"][0].sum() == 21


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["crf"], "takes entries with NAME dense_crf or morphology"),
        ([{"NAME": "crf"}], "takes entries with NAME dense_crf or morphology"),
        ([{"NAME": "dense_crf", "bi_std": 3}], "unknown argument bi_std; takes iterations, bi_w"),
        ([{"NAME": "dense_crf", "bi_xy_std": 0}], "bandwidths of position must be positive and finite, got 0"),
        ([{"NAME": "dense_crf", "bi_rgb_std": [3, -1]}], "bandwidths of values must be positive, got [3, -1]"),
        ([{"NAME": "dense_crf", "bi_rgb_std": "3"}], "a kernel's values must be a number or a list of numbers"),
        ([{"NAME": "dense_crf", "pos_w": float("nan")}], "weight must be finite, got nan"),
        ([{"NAME": "dense_crf", "iterations": 2.5}], "iterations must be a whole number from 0, got 2.5"),
        ([{"NAME": "dense_crf", "compatibility": [[0, 1], [1, 0]]}], "compatibility must be 3 x 3, got (2, 2)"),
        ([OPENING, CRF], "dense_crf after morphology"),
        ([{"NAME": "morphology"}], "takes STEPS, a list of"),
        ([{"NAME": "morphology", "STEPS": [{"NAME": "thin"}]}], "unknown morphology operation 'thin'; known: opening"),
        (
            [{"NAME": "morphology", "STEPS": [{"NAME": "closing", "CLASSES": [3], "radius": 1}]}],
            "CLASSES must be class ids from 0 to 2, got 3",
        ),
    ],
)
def test_a_bad_step_is_refused_in_one_line_that_names_the_key(steps: list[Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Refiner(steps, num_classes=3)
    assert message in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("TEST.REFINE")


def test_what_cannot_be_refined_is_refused_with_the_images_name(scores: Tensor, image: Tensor) -> None:
    with pytest.raises(UserError, match="TEST.REFINE: the model gives instances; takes one with sem_seg"):
        refined([CRF], image, instances=0)
    for bad, message in (
        (image[:2], "the kernel has 3 bandwidths of values, the image 2 bands"),
        (image / torch.zeros(1), "values that are not finite"),
    ):
        wrapped = Refine(Says(sem_seg=scores), Refiner([CRF | {"bi_rgb_std": [3, 3, 3]}], num_classes=3))
        with pytest.raises(UserError, match=f"x.png: TEST.REFINE: .*{message}"):
            wrapped([{"image": bad, "file_name": "x.png"}])


def test_steps_come_from_yaml_and_command_line_alike(tmp_path: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("VERSION: 2\nTEST: {REFINE: [{NAME: dense_crf, bi_w: 5}, {NAME: morphology, STEPS: []}]}\n")
    text = "[{'NAME': 'dense_crf', 'bi_w': 5}, {'NAME': 'morphology', 'STEPS': []}]"
    want = [{"NAME": "dense_crf", "bi_w": 5}, {"NAME": "morphology", "STEPS": []}]
    assert load_config(file).TEST.REFINE == want
    file.write_text("VERSION: 2\n")
    assert load_config(file, ["TEST.REFINE", text]).TEST.REFINE == want
