"""The pipeline hands every item on once, in bounded memory, and keeps one item's failure its own."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import pytest
import torch

from seg_ext.errors import UserError
from seg_ext.inference.pipeline import Failure, Sample, run_pipeline


def read(item: int) -> Sample:
    if item % 10 == 7:
        raise UserError(f"item {item} is unlucky")
    if item == 9:
        raise IndexError("nine")
    return Sample(item, {"image": torch.zeros(1, 1 + item % 3, 1), "item": item}, None)


def predict(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(x["item"] == 5 for x in inputs):
        raise RuntimeError("five\nis right out")
    return [{"item": x["item"]} for x in inputs]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_item_comes_out_once_with_its_own_result(batch_size: int, threads: int) -> None:
    found = dict(
        run_pipeline(
            range(30),
            read=read,
            predict=predict,
            write=lambda sample, output: (sample.item, output["item"]),
            batch_size=batch_size,
            threads=threads,
        )
    )
    wrong = {7: "item 7 is unlucky", 17: "item 17 is unlucky", 27: "item 27 is unlucky"}
    wrong |= {5: "cannot be predicted: RuntimeError: five", 9: "cannot be predicted: IndexError: nine"}
    assert found == {item: Failure(wrong[item]) if item in wrong else (item, item) for item in range(30)}


def test_a_batch_that_fails_is_let_go_before_its_images_are_tried_alone() -> None:
    class Activations:
        """Memory of a pass."""

    held: list[weakref.ref[Activations]] = []

    def greedy(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert all(ref() is None for ref in held), "the failed pass still has its memory"
        own = Activations()
        held.append(weakref.ref(own))
        if len(inputs) > 1:
            raise MemoryError
        return [{} for _ in inputs]

    items = range(0, 6, 3)  # of one size
    results = run_pipeline(items, read=read, predict=greedy, write=lambda sample, output: "done", batch_size=2)
    assert dict(results) == {0: "done", 3: "done"} and len(held) == 3


def test_single_images_keep_their_order() -> None:
    results = run_pipeline(range(20), read=read, predict=predict, write=lambda sample, output: None, threads=3)
    assert [item for item, _ in results] == list(range(20))


def test_few_images_are_in_memory_at_once_however_many_there_are() -> None:
    alive, most, lock = [0], [0], threading.Lock()

    def counted(item: int) -> Sample:
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return Sample(item, {"image": torch.zeros(1, 1 + item, 1), "item": 0}, None)  # sizes that all differ

    def write(sample: Sample, output: Any) -> None:
        with lock:
            alive[0] -= 1

    for _ in run_pipeline(range(200), read=counted, predict=predict, write=write, batch_size=2, threads=2):
        pass
    assert most[0] <= 24 and alive[0] == 0


def test_reading_and_writing_go_on_while_the_model_works() -> None:
    def slow(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.02)
        return [{} for _ in inputs]

    def waiting(value: Any) -> Any:
        time.sleep(0.015)
        return value

    start = time.perf_counter()
    results = run_pipeline(
        range(20),
        read=lambda item: waiting(Sample(item, {"image": torch.zeros(1, 1, 1)}, None)),
        predict=slow,
        write=lambda sample, output: waiting(None),
    )
    assert len(list(results)) == 20
    assert time.perf_counter() - start < 0.8 * 20 * 0.05, "one after the other they take 50 ms an image"


def test_what_cannot_be_written_ends_the_run() -> None:
    def write(sample: Sample, output: Any) -> None:
        raise UserError("a full disk")

    with pytest.raises(UserError, match="a full disk"):
        list(run_pipeline(range(20), read=read, predict=predict, write=write))
