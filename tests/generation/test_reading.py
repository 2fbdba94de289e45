import pytest
import torch

from chatwright.data.rendered import Rendered
from chatwright.generation.engine import Engine
from chatwright.generation.reading import embed, read


@pytest.fixture
def rows():
    return [Rendered(list(range(70, 70 + length)), [False] * length) for length in (3, 9, 1, 5)]


def test_a_reading_is_that_of_each_text_alone(language_model, renderer, rows):
    readings = read(Engine(language_model, renderer, batch_size=2), rows, alternatives=3)
    for row, reading in zip(rows, readings, strict=True):
        with torch.no_grad():
            logprobs = language_model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        assert reading.logprobs[0] is None and len(reading.logprobs) == len(reading.alternatives) == len(row)
        for place in range(1, len(row)):
            assert reading.logprobs[place] == pytest.approx(logprobs[place - 1, row.input_ids[place]].item(), abs=1e-5)
            best = logprobs[place - 1].topk(3)
            assert [token for token, _ in reading.alternatives[place]] == best.indices.tolist()


def test_an_embedding_is_of_length_one_and_knows_nothing_of_padding(language_model, renderer, rows):
    together = embed(Engine(language_model, renderer), rows)
    alone = torch.cat([embed(Engine(language_model, renderer), [row]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(4))
