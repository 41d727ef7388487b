"""The evaluation loop: gaps, shards, the files of a journal, interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spikeprop.errors import EvaluationError
from spikeprop.evaluate import BatchPredictions, Journal, Predictor, evaluate
from spikeprop.evaluate.loop import _counted
from spikeprop.runtime.processes import Processes


class Numbers:
    """Ten batches of two images; an image is its own number, and an interruption may come in batch ``stop``."""

    batch_size = 2

    def __init__(self, stop: int | None = None):
        self.stop = stop
        self.read: list[int] = []

    def __len__(self) -> int:
        return 10

    def fingerprint(self) -> str:
        return "numbers"

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(start, 10):
            if number == self.stop:
                raise KeyboardInterrupt
            self.read.append(number)
            x = torch.tensor([[2 * number], [2 * number + 1]])
            yield nn.functional.one_hot(x, 20).float().squeeze(1), x.squeeze(1) // 2 * 2


def predicted(batches: list[BatchPredictions]) -> list[int]:
    return [int(image) for batch in batches for image in batch.best[:, 0, 0]]


def test_missing_batches_are_predicted_once_and_in_order(tmp_path: Path) -> None:
    predictor, journal = Predictor(top=1), Journal(tmp_path, {"of": "numbers"})
    journal.open({})
    all_of_them = evaluate(nn.Identity(), Numbers(), predictor)
    journal.add([all_of_them[2], all_of_them[3], all_of_them[7]])
    split = Numbers()
    batches = evaluate(nn.Identity(), split, predictor, journal=journal)
    assert split.read == [0, 1, 4, 5, 6, 8, 9]
    assert predicted(batches) == predicted(all_of_them) == list(range(20))
    again = Numbers()
    assert predicted(evaluate(nn.Identity(), again, predictor, journal=journal)) == list(range(20))
    assert again.read == []


def test_an_interruption_keeps_finished_batches(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.open({})
    with pytest.raises(KeyboardInterrupt):
        evaluate(nn.Identity(), Numbers(stop=6), Predictor(top=1), journal=journal)
    assert list(journal.read()) == list(range(6))


def test_shares_are_even_and_leave_nothing_out() -> None:
    for items, count in ((10, 3), (2, 4), (0, 2)):
        shares = [Processes(rank, count).shard(range(items)) for rank in range(count)]
        assert [item for share in shares for item in share] == list(range(items))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("batches", "size", "images", "counted"),
    [(500, 100, 200, [0, 250]), (50, 200, 500, [0, 20, 40]), (4, 100, 10_000, [0, 1, 2, 3]), (7, 50, 1, [0]), (7, 50, 0, [])],
)
def test_activity_is_counted_at_even_distances(batches: int, size: int, images: int, counted: list[int]) -> None:
    assert list(islice(_counted(batches, size, images), 10)) == counted


def test_a_folder_with_damage_or_another_format_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 1})
    journal.open({"commit": "a"})
    assert journal.about() == {"commit": "a"}
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / ".000000-000001.safetensors.99.part.safetensors").write_bytes(b"half")
    assert journal.read() == {}
    (tmp_path / "parts" / "000000-000001.safetensors").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"000000-000001\.safetensors is damaged.*predicted again"):
        assert journal.read() == {}
    assert journal.read() == {}
    with pytest.raises(EvaluationError, match="seed: 1 there, 2 here"):
        Journal(tmp_path, {"seed": 2}).open({})
    journal.open({}, restart=True)
    assert journal.read() == {}


def test_no_images() -> None:
    class Empty(Numbers):
        def __len__(self) -> int:
            return 0

    with pytest.raises(ValueError, match="no images"):
        evaluate(nn.Identity(), Empty(), Predictor())
