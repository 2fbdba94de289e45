import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from chatwright.errors import ChatwrightError
from chatwright.generation.sampling import Sampling, distribution, draw, most_likely, stream_of_uniforms

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0]])


def probabilities(**settings) -> torch.Tensor:
    return distribution(LOGITS, Sampling(**settings)).softmax(-1)[0]


def test_temperature_divides_the_logits():
    assert torch.allclose(probabilities(temperature=0.5), (LOGITS[0] * 2).softmax(-1))


def test_top_k_keeps_the_k_most_likely():
    assert (probabilities(top_k=2) > 0).tolist() == [True, True, False, False, False]
    assert torch.equal(probabilities(top_k=50), probabilities())


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.7, 2), (0.95, 3), (1.0, 5), (1e-9, 1)])
def test_top_p_keeps_the_smallest_set_that_holds_p(top_p, kept):
    everything = probabilities()
    found = probabilities(top_p=top_p)
    assert (found > 0).sum() == kept
    assert kept == 5 or everything[:kept].sum() >= top_p
    assert torch.allclose(found[:kept], everything[:kept] / everything[:kept].sum())


def test_top_p_leaves_tokens_in_their_places():
    shuffled = LOGITS[:, [4, 2, 0, 3, 1]]
    kept = distribution(shuffled, Sampling(top_p=0.7)) > float("-inf")
    assert kept[0].tolist() == [False, False, True, False, True]


def test_draws_follow_the_distribution_and_say_its_log_probabilities():
    logits = distribution(LOGITS, Sampling(temperature=1.5, top_k=4))
    count = 40_000
    uniforms = torch.from_numpy(stream_of_uniforms(0, b"", 0, count))
    tokens, logprobs = draw(logits.expand(count, -1), uniforms)
    expected = logits.softmax(-1)[0]
    seen = torch.bincount(tokens, minlength=5) / count
    # Five standard deviations of a proportion.
    assert ((seen - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


def test_extreme_uniforms_never_draw_an_excluded_token():
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    largest = torch.tensor(np.nextafter(np.float32(1), np.float32(0)))
    tokens, _ = draw(logits.expand(2, -1), torch.stack([torch.tensor(0.0), largest]))
    assert tokens.tolist() == [1, 2]


def test_greedy_takes_the_most_likely():
    tokens, logprobs = draw(LOGITS, None)
    assert tokens.tolist() == [0]
    assert torch.allclose(logprobs, LOGITS.log_softmax(-1)[:, 0])


def test_streams_differ_by_seed_prompt_and_sample_and_repeat():
    first = stream_of_uniforms(0, b"a", 0, 8)
    assert np.array_equal(first, stream_of_uniforms(0, b"a", 0, 8))
    # A longer stream begins like a shorter one.
    assert np.array_equal(first, stream_of_uniforms(0, b"a", 0, 20)[:8])
    for other in [(1, b"a", 0), (0, b"b", 0), (0, b"a", 1)]:
        assert not np.array_equal(first, stream_of_uniforms(*other, 8))


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ChatwrightError, match="not finite"):
        draw(torch.tensor([[float("nan"), 0.0]]), None)


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ChatwrightError, match=next(iter(settings))):
        Sampling(**settings)


def test_the_penalty_is_that_of_transformers():
    seen = [[0, 3, 3], [4]]
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0], [0.5, 1.0, 0.0, -1.0, -5.0]])
    found = distribution(logits, Sampling(repetition_penalty=1.3), seen)
    theirs = [
        RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), row[None])[0]
        for tokens, row in zip(seen, logits, strict=True)
    ]
    assert torch.equal(found, torch.stack(theirs))


def test_the_most_likely_are_those_that_can_be_drawn():
    (several,) = most_likely(distribution(LOGITS, Sampling(top_k=2)), 4)
    assert [token for token, _ in several] == [0, 1]
    assert sum(np.exp(logprob) for _, logprob in several) == pytest.approx(1)
