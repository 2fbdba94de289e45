"""Batches without padding: what stands where."""

import numpy as np
import torch

from chatwright.data.packing import pack

MARK = 9


def test_what_rows_have_in_common_stands_once():
    prompt = list(range(100, 110))
    rows = [[1, 2, 3], [*prompt, 4, 5], [*prompt, 4], [*prompt[:7], 0, 0], prompt]
    packing = pack(rows, [{}] * 5, {MARK}, 12)
    padded = torch.tensor([row + [0] * (12 - len(row)) for row in rows])
    sequence = padded.flatten()[packing.tokens].tolist()
    # The prompt itself adds one token: a row never vanishes. Seven tokens are too few to share.
    assert sequence == [1, 2, 3, *prompt, 4, 5, 4, *prompt[:7], 0, 0, *prompt]
    assert [sequence[place] for place in packing.index[2, :11]] == rows[2]
    assert not packing.regular


def test_a_beginning_with_pictures_is_shared_only_with_the_same_pictures():
    pictures = [torch.full((1, 3, 2, 2), float(i)) for i in range(3)]
    rows = [[MARK, *range(20, 30), last] for last in (1, 2, 3)]
    media = [{"pixel_values": pictures[0]}, {"pixel_values": pictures[0].clone()}, {"pixel_values": pictures[1]}]
    packing = pack(rows, media, {MARK}, 12)
    assert len(packing.tokens) == 12 + 1 + 12
    assert packing.media["pixel_values"].tolist() == [0, 2]
    batch = {"input_ids": torch.tensor(rows), "position_ids": torch.arange(12).expand(3, 12)}
    inputs = packing.inputs(batch | {"pixel_values": torch.cat(pictures), "loss_mask": torch.ones(3, 12)})
    assert inputs["pixel_values"][:, 0, 0, 0].tolist() == [0.0, 2.0]
    assert set(inputs) == {"input_ids", "position_ids", "pixel_values"}
    # A picture in what is a row's own, or a row with one more: nothing is shared.
    late = [[*range(20, 30), MARK], [*range(20, 30), MARK]]
    assert len(pack(late, [{"pixel_values": pictures[0]}, {"pixel_values": pictures[1]}], {MARK}, 11).tokens) == 22
    assert (
        len(pack([late[0], [*late[0], MARK]], [{"p": pictures[0]}, {"p": torch.cat(pictures[:2])}], {MARK}, 12).tokens)
        == 23
    )


def test_rows_of_one_length_are_the_batch_itself():
    packing = pack([[1, 2], [3, 4]], [{}, {}], set(), 2)
    assert packing.regular and packing.index.tolist() == [[0, 1], [2, 3]]


def test_every_token_attends_to_its_own_row_up_to_itself():
    random = np.random.default_rng(0)
    rows = []
    for _ in range(6):
        prompt = random.integers(10, 99, random.integers(8, 20)).tolist()
        rows += [prompt + random.integers(10, 99, random.integers(1, 9)).tolist() for _ in range(random.integers(1, 4))]
    width = max(map(len, rows))
    packing = pack(rows, [{}] * len(rows), {MARK}, width)
    assert len(packing.tokens) < sum(map(len, rows))
    assert packing.asked is None and packing.queries[packing.asking].tolist() == list(range(len(packing.tokens)))
    seen, asking, asked = {}, iter(packing.queries.tolist()), iter(packing.keys.tolist())
    for mask in packing.masks:
        count, width, length = mask.shape
        queries = [[next(asking) for _ in range(width)] for _ in range(count)]
        keys = torch.tensor([[next(asked) for _ in range(length)] for _ in range(count)])
        for row, around, sees in zip(queries, keys, mask, strict=True):
            for query, some in zip(row, sees, strict=True):
                seen.setdefault(query, set()).add(tuple(around[some].tolist()))
    assert not [*asking, *asked]
    for number, row in enumerate(rows):
        for place in range(len(row)):
            assert seen[int(packing.index[number, place])] == {tuple(packing.index[number, : place + 1].tolist())}


def test_where_no_rows_share_tokens_each_is_among_the_keys_once():
    packing = pack([[1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11]], [{}] * 4, set(), 5)
    assert len(packing.masks) > 1 and packing.keys[packing.asked].tolist() == list(range(11))
