"""What must hold of reinforcement learning, on text and on pictures through the same code."""

import copy
import json

import pytest
import torch
from tests.conftest import picture
from tests.mrope import MODELS, mrope_model, mrope_renderer

from chatwright.data.records import Message, Prompt
from chatwright.models.eyes import share_eye
from chatwright.models.heads import RewardModel
from chatwright.models.outputs import model_inputs
from chatwright.objectives.feedback.methods import ONLINE, make
from chatwright.stages.experience import METRICS, Experience
from chatwright.stages.rl import RL
from chatwright.training.loop import Training, fit

TEMPERATURES = [0.7, 1.0, 1.3]


class Counts(RewardModel):
    """A reward that anyone can check: how often a response says one of some tokens."""

    def __init__(self, assistant, tokens):
        super().__init__(copy.deepcopy(assistant))
        self.tokens = torch.tensor(sorted(tokens))

    def scores(self, inputs):
        return (torch.isin(inputs["input_ids"], self.tokens) & inputs["loss_mask"]).sum(1).float()


def more(prompt, turns):
    """An environment that wants to hear more after every turn, unless it was a short one."""
    return Message.of("tool", f"{len(turns)} more? 狗") if len(turns[-1].text) > 3 else None


def experience(assistant, renderer, prompts, reward=None, environment=None, **settings):
    torch.manual_seed(5)
    scorer = RewardModel(copy.deepcopy(assistant))
    critic = copy.deepcopy(scorer)
    reference = copy.deepcopy(assistant)
    rows = share_eye([assistant, reference, scorer.backbone, critic.backbone], [renderer.prompt(p) for p in prompts])
    stage = RL("", "", **{"max_new_tokens": 8, **settings})
    parts = [assistant, renderer, stage.temperature, 0.0, *([critic] if ONLINE[stage.method].has_critic else [])]
    objective = make(ONLINE, stage.method, stage.options, *parts)
    asked = [(Prompt(tuple(p)), row) for p, row in zip(prompts, rows, strict=True)]
    return objective, Experience(
        stage, objective, reference, [reward or scorer, None, None], asked, [], environment=environment
    )


@pytest.fixture(params=["text", "image", "both"])
def prompts(request, conversations):
    return [conversations[i] for i in {"text": [0, 3], "image": [1, 2, 4], "both": [0, 1, 2, 3, 4]}[request.param]]


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_first_ratio_is_one(assistant, renderer, prompts, temperature, attention):
    assistant.get_decoder().set_attn_implementation(attention)
    with torch.no_grad():  # tied: logits as large as a trained model's, not those of its wide weights
        assistant.get_input_embeddings().weight.mul_(0.5)
    check_first_ratio(assistant, renderer, prompts, temperature)


@pytest.mark.parametrize("kind", MODELS)
def test_the_first_ratio_is_one_where_pictures_are_counted_by_rows_and_columns(kind, tokenizer, conversations):
    renderer = mrope_renderer(tokenizer)
    conversations[2][0] = Message.of("user", "图片里有什么？", picture(2).resize((64, 32)))
    check_first_ratio(mrope_model(kind, renderer), renderer, conversations, 0.7)


def check_first_ratio(model, renderer, prompts, temperature):
    objective, loader = experience(
        model, renderer, prompts, temperature=temperature, rollouts=24, minibatches=1, micro_batch=8, iterations=1
    )
    for batch in next(iter(loader)):
        metrics = objective.loss(batch).metrics
        assert metrics["fresh_log_ratio"][1] == 1
        assert metrics["fresh_log_ratio"][0] < 1e-5
        assert metrics["clip_fraction"][0] == 0
        assert abs(metrics["kl_from_rollout"][0]) < 1e-4
    # The reference is the policy that said them, so nothing has been paid for moving away either.
    assert loader.buffer.metrics[:, METRICS.index("kl")].abs().max() < 1e-4


def test_what_learns_in_bf16_answers_in_bf16(assistant, renderer, prompts):
    with torch.no_grad():
        assistant.get_input_embeddings().weight.mul_(0.5)
    before = copy.deepcopy(assistant.state_dict())
    training = Training(precision="bf16")
    sizes = {"rollouts": 24, "minibatches": 1, "micro_batch": 8, "iterations": 1}
    objective, loader = experience(assistant, renderer, prompts, training=training, **sizes)
    seen = {"policy": set(), "reference": set(), "critic": set()}
    models = {"policy": assistant, "reference": loader.reference, "critic": objective.critic.backbone}
    for name, model in models.items():
        layer = model.get_decoder().layers[0]
        layer.register_forward_pre_hook(
            lambda layer, _, name=name: seen[name].add(
                (layer.mlp.up_proj.weight.dtype, torch.is_autocast_enabled("cpu"))
            )
        )
    batches = next(iter(loader))
    assert seen["policy"] == {(torch.bfloat16, False)}
    assert seen["reference"] == seen["critic"] == {(torch.float32, True)}
    assert all(torch.equal(value, before[name]) for name, value in assistant.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        apart = [float(objective.loss(batch).metrics["fresh_log_ratio"][0]) for batch in batches]
    assert 0 < max(apart) < 0.2


def test_the_first_ratio_is_one_in_every_turn(talker, renderer, prompts):
    """Of what the policy said, whatever its environment said in between; the rows are whole conversations."""
    sizes = {"max_new_tokens": 60, "rollouts": 24, "minibatches": 1, "micro_batch": 8, "iterations": 1}
    objective, loader = experience(talker, renderer, prompts, environment=more, turns=3, **sizes)
    metrics = [objective.loss(batch).metrics for batch in next(iter(loader))]
    assert max(float(metric["fresh_log_ratio"][0]) for metric in metrics) < 1e-5
    assert max(abs(float(metric["kl_from_rollout"][0])) for metric in metrics) < 1e-4
    buffer = loader.buffer
    assert buffer.metrics[:, METRICS.index("kl")].abs().max() < 1e-4
    turns = buffer.metrics[:, METRICS.index("turns")]
    assert set(turns.tolist()) == {1, 2, 3} and sum(metric["turns"][0] for metric in metrics) == turns.sum()
    for i, (length, mask) in enumerate(zip(buffer.lengths.tolist(), buffer.mask, strict=True)):
        tokens, said = buffer.tokens[i, :length].tolist(), mask[:length].tolist()
        assert loader._row(i).loss_mask == [False] * len(renderer.prompt(prompts[int(buffer.prompts[i])])) + said
        replies = [token for token, own in zip(tokens, said, strict=True) if not own]
        expected = "".join(f"<|tool|>{k} more? 狗<|end|><|assistant|>" for k in (1, 3)[: int(turns[i]) - 1])
        assert renderer.tokenizer.decode(replies) == expected
        assert (buffer.logprobs[i, mask] < 0).all() and not mask[length:].any()
        for about in (buffer.logprobs, buffer.reference, buffer.values, buffer.advantages, buffer.returns):
            assert (about[i, ~mask] == 0).all()


def test_rollouts_are_what_the_formulas_say(assistant, renderer, conversations):
    """Rewards, advantages and returns of the buffer, recomputed one response at a time."""
    torch.manual_seed(0)
    objective, loader = experience(
        assistant, renderer, conversations, rollouts=24, minibatches=1, iterations=1, options={"whiten_rewards": 0}
    )
    for parameter in loader.reference.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    next(iter(loader))
    buffer = loader.buffer
    expected = []
    with torch.no_grad():
        for row in range(24):
            batch = renderer.collate([loader._row(row)])
            logits = loader.reference(**model_inputs(loader.reference, batch)).logits[0, :-1]
            logits[:, list(renderer.placeholders.values())] = float("-inf")
            length = int(buffer.lengths[row])
            reference = logits.log_softmax(-1)[-length:].gather(1, batch["input_ids"][0, -length:, None])[:, 0]
            last = int(buffer.tokens[row, length - 1])
            score = float(loader.judges[0].scores(batch)) - (1.0 if last not in renderer.stop_ids else 0.0)
            rewards = -objective.kl_coefficient * (buffer.logprobs[row, :length] - reference)
            rewards[-1] += score
            values = [*objective.critic.values(batch)[0, -length:].tolist(), 0.0]
            advantage, advantages = 0.0, []
            for t in reversed(range(length)):
                advantage = float(rewards[t]) + values[t + 1] - values[t] + 0.95 * advantage
                advantages.insert(0, advantage)
            returns = torch.tensor(advantages) + torch.tensor(values[:-1])
            assert torch.allclose(buffer.returns[row, :length], returns, atol=1e-3)
            assert (buffer.returns[row, length:] == 0).all() and (buffer.advantages[row, length:] == 0).all()
            expected += advantages
    expected = torch.tensor(expected)
    whitened = (expected - expected.mean()) / expected.std(correction=0)
    assert torch.allclose(buffer.advantages[buffer.mask], whitened, atol=1e-2)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("method", ONLINE)
def test_what_is_paid_for_is_learned(assistant, renderer, conversations, tmp_path, method, kind):
    """Paid for tokens of one kind, the policy says more of them; within seconds, by every method."""
    chosen = [conversations[i] for i in ([0, 3] if kind == "text" else [1, 2])]
    objective, loader = experience(
        assistant,
        renderer,
        chosen,
        Counts(assistant, range(30, 130)),
        method=method,
        rollouts=64,
        minibatches=2,
        iterations=16,
        unfinished_penalty=0.0,
    )
    settings = Training(learning_rate=5e-3, warmup=0.0, decay="constant", precision="fp32", log_every=1)
    before = {name: p.clone() for name, p in loader.reference.named_parameters()}
    fit(objective, loader, settings, tmp_path, "rl")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines]
    assert sum(scores[-6:]) / 6 > 1.3 * sum(scores[:4]) / 4 + 0.3, scores
    assert all(line["fresh_log_ratio"] < 1e-5 for line in lines)
    assert all(torch.equal(before[name], p) for name, p in loader.reference.named_parameters())
