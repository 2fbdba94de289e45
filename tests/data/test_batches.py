import numpy as np
import pytest

from chatwright.data.batches import Batches


def lengths(number: int) -> list[int]:
    return [int(length) for length in np.random.default_rng(0).integers(1, 100, number)]


def batches(**changes) -> Batches:
    rows = range(100)
    settings = {"size": 20, "steps": 10, "seed": 0, "micro": 5, "lengths": lengths(100)} | changes
    return Batches(rows, lambda some: {"rows": some}, **settings)


def rows_of(steps) -> list[list[list[int]]]:
    """The rows of every micro-batch of every step."""
    return [[micro["rows"] for micro in step] for step in steps]


def test_every_row_comes_once_an_epoch():
    steps = [[row for micro in step for row in micro] for step in rows_of(batches())]
    assert len(steps) == 10
    for epoch in (steps[:5], steps[5:]):
        assert sorted(row for step in epoch for row in step) == list(range(100))
    assert steps[:5] != steps[5:]


def test_micro_batches_hold_rows_of_like_length_and_steps_do_not():
    size = lengths(100)
    for step in rows_of(batches()):
        spans = [max(size[row] for row in micro) - min(size[row] for row in micro) for micro in step]
        whole = [size[row] for micro in step for row in micro]
        assert sum(spans) <= max(whole) - min(whole)  # sorted: the spans do not overlap
        assert max(whole) - min(whole) > 50


def test_a_seed_gives_the_same_order_and_goes_on_where_it_was():
    whole, again = list(batches()), batches()
    assert list(batches(seed=1)) != whole
    again.load_state_dict({"step": 4})
    assert list(again) == whole[4:] and again.state_dict() == {"step": 10}


@pytest.mark.parametrize("micro", [0, 5, 8])
def test_processes_share_a_step_and_each_gets_as_many_micro_batches(micro):
    shares = []
    for rank in range(3):
        loader = batches(micro=micro)
        loader.share(rank, 3)
        shares.append(list(loader))
    whole = [row for step in rows_of(batches()) for micro in step for row in micro]
    counted = [
        row
        for step in zip(*shares, strict=True)
        for share in step
        for micro in share
        if "repeated" not in micro
        for row in micro["rows"]
    ]
    assert sorted(counted) == sorted(whole)
    assert all(len({len(share) for share in step}) == 1 for step in zip(*shares, strict=True))
    repeated = [micro["rows"] for share in shares[1:] for step in share for micro in step if "repeated" in micro]
    assert all(rows in [micro["rows"] for step in shares[0] for micro in step] for rows in repeated)
