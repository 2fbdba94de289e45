import numpy as np

from chatwright.data.batches import Batches


def lengths(number: int) -> list[int]:
    return [int(length) for length in np.random.default_rng(0).integers(1, 100, number)]


def batches(**changes) -> Batches:
    rows = range(100)
    settings = {"size": 20, "steps": 10, "seed": 0, "micro": 5, "lengths": lengths(100)} | changes
    return Batches(rows, list, **settings)


def test_every_row_comes_once_an_epoch():
    steps = [[row for micro in step for row in micro] for step in batches()]
    assert len(steps) == 10
    for epoch in (steps[:5], steps[5:]):
        assert sorted(row for step in epoch for row in step) == list(range(100))
    assert steps[:5] != steps[5:]


def test_micro_batches_hold_rows_of_like_length_and_steps_do_not():
    size = lengths(100)
    for step in batches():
        spans = [max(size[row] for row in micro) - min(size[row] for row in micro) for micro in step]
        whole = [size[row] for micro in step for row in micro]
        assert sum(spans) <= max(whole) - min(whole)  # sorted: the spans do not overlap
        assert max(whole) - min(whole) > 50


def test_a_seed_gives_the_same_order_and_goes_on_where_it_was():
    whole, again = list(batches()), batches()
    assert list(batches(seed=1)) != whole
    again.load_state_dict({"step": 4})
    assert list(again) == whole[4:] and again.state_dict() == {"step": 10}
