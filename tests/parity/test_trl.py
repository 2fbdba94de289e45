"""The same loss and the same gradient as TRL, on the same tokens and weights; ``make parity`` installs it.

TRL's trainers are built as their users build them and asked for the loss of a batch that our renderer made. Where we
differ on purpose, the difference is a test too.
"""

import copy
import inspect
import math
import textwrap

import pytest
import torch

trl = pytest.importorskip("trl", reason="TRL is not installed; `make parity` installs it")

from datasets import Dataset  # noqa: E402

from chatwright.data.records import Message  # noqa: E402
from chatwright.data.render import Renderer  # noqa: E402
from chatwright.objectives.feedback import mathematics as maths  # noqa: E402
from chatwright.objectives.feedback.methods import OFFLINE, ONLINE, make  # noqa: E402
from chatwright.objectives.feedback.rollouts import Rollouts  # noqa: E402

GENERAL = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 2, "bf16": False}
new = pytest.mark.skipif(not trl.__version__.startswith("1.16"), reason="compared with TRL 1.16")
old = pytest.mark.skipif(
    not trl.__version__.startswith("1.12"), reason="PPO is compared with TRL 1.12, the last with it"
)


@pytest.fixture
def speaker(tokenizer):
    """Renders for a model that reads text only."""
    return Renderer(tokenizer)


@pytest.fixture
def policy(language_model):
    with torch.no_grad():  # so that probabilities are like a trained model's
        language_model.get_input_embeddings().weight.mul_(0.5)
    return language_model


@pytest.fixture
def reference(policy):
    torch.manual_seed(7)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return other


def rows_of(speaker, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompt = speaker.prompt([Message.of("user", "How many dogs?")])
    return [
        speaker.answered(prompt, torch.randint(10, 300, (length,), generator=generator).tolist()) for length in lengths
    ]


def trainer_of(name, tmp_path, policy, tokenizer, reference=None, **settings):
    """A trainer of TRL, as a user makes it."""
    where = "trl.experimental." + {"ORPO": "orpo", "CPO": "cpo"}[name] if name in ("ORPO", "CPO") else "trl"
    module = __import__(where, fromlist=["_"])
    config = getattr(module, f"{name}Config")(output_dir=str(tmp_path), **GENERAL, **settings)
    data = {"prompt": ["dog", "red"], "chosen": ["a dog", "apple"], "rejected": ["no", "green"]}
    if name == "KTO":
        data = {"prompt": ["dog", "red"], "completion": ["a dog", "apple"], "label": [True, False]}
    parts = {"args": config, "train_dataset": Dataset.from_dict(data), "processing_class": tokenizer}
    if name in ("GRPO", "RLOO"):
        parts["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
    if reference is not None:
        parts["ref_model"] = reference
    trainer = getattr(module, f"{name}Trainer")(model=policy, **parts)
    trainer.model.eval()
    return trainer


def gradient_of(policy, total):
    policy.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same(ours, theirs):
    (our_loss, our_gradient), (their_loss, their_gradient) = ours, theirs
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-6)
    scale = max(float(g.abs().max()) for g in their_gradient.values())
    assert scale > 0
    for name, gradient in their_gradient.items():
        torch.testing.assert_close(our_gradient[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def ours_of(objective, policy, batch):
    loss = objective.loss(batch)
    return (loss.total / loss.weight).detach(), gradient_of(policy, objective.loss(batch).total / loss.weight)


def whole(model, batch):
    """Log-probabilities of the responses [N]."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    every = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return (every * batch["loss_mask"][:, 1:]).sum(1)


# ---- offline


@pytest.fixture
def pairs(speaker, reference):
    """Three prompts with a better response each (the first three rows) and a worse one, of different lengths."""
    batch = speaker.collate(rows_of(speaker, [3, 5, 2, 4, 1, 6]))
    batch["comparison.ranks"] = torch.tensor([0, 0, 0, 1, 1, 1])
    batch["comparison.groups"] = torch.tensor([0, 1, 2, 0, 1, 2])
    batch["reference.logprobs"] = whole(reference, batch)
    return batch


def as_trl(batch):
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "completion_mask": batch["loss_mask"].long(),
    }


@new
@pytest.mark.parametrize(("name", "kind", "options"), [("dpo", "sigmoid", {"beta": 0.3}), ("ipo", "ipo", {"tau": 0.3})])
def test_dpo_and_ipo(tmp_path, policy, tokenizer, speaker, reference, pairs, name, kind, options):
    ours = ours_of(make(OFFLINE, name, options, policy, speaker), policy, pairs)
    trainer = trainer_of("DPO", tmp_path, policy, tokenizer, reference, beta=0.3, loss_type=kind)
    loss = trainer._compute_loss(trainer.model, as_trl(pairs), False)
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))


@new
def test_kto(tmp_path, policy, tokenizer, speaker, reference, pairs):
    elsewhere = rows_of(speaker, [2, 4, 3], seed=1)
    batch = speaker.collate(rows_of(speaker, [3, 5, 2, 4, 1, 6]) + elsewhere)
    batch["comparison.ranks"] = torch.tensor([0.0, 0, 0, 1, 1, 1, 0.5, 0.5, 0.5])
    batch["comparison.groups"] = torch.tensor([0, 1, 2, 0, 1, 2, -1, -1, -1])
    batch["reference.logprobs"] = whole(reference, batch)
    objective = make(OFFLINE, "kto", {"beta": 0.3, "good": 1.2, "bad": 0.8}, policy, speaker)
    ours = ours_of(objective, policy, batch)
    trainer = trainer_of(
        "KTO", tmp_path, policy, tokenizer, reference, beta=0.3, desirable_weight=1.2, undesirable_weight=0.8
    )
    crossed = as_trl(speaker.collate(elsewhere))
    inputs = as_trl(pairs) | {f"KL_{key}": value for key, value in crossed.items()}
    inputs["label"] = torch.tensor([True, True, True, False, False, False])
    loss = trainer._compute_loss(trainer.model, inputs, False)
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))


def means_of(policy, batch):
    """The mean log-probability of a response's tokens, with gradient, [N]."""
    logits = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    every = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    mask = batch["loss_mask"][:, 1:]
    return (every * mask).sum(1) / mask.sum(1)


@new
def test_simpo(tmp_path, policy, tokenizer, speaker, pairs):
    ours = ours_of(make(OFFLINE, "simpo", {"beta": 2.5, "gamma": 0.7}, policy, speaker), policy, pairs)
    trainer = trainer_of(
        "CPO", tmp_path, policy, tokenizer, loss_type="simpo", beta=2.5, simpo_gamma=0.7, cpo_alpha=0.0
    )
    loss = trainer.cpo_loss(*means_of(policy, pairs).chunk(2))[0].mean()
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))


@new
def test_conservative_dpo(tmp_path, policy, tokenizer, speaker, pairs):
    """TRL has label smoothing in CPO's trainer, which is DPO's where the reference is uniform."""
    batch = {**pairs, "reference.logprobs": torch.zeros(6)}
    ours = ours_of(make(OFFLINE, "conservative_dpo", {"beta": 0.3, "flipped": 0.2}, policy, speaker), policy, batch)
    trainer = trainer_of("CPO", tmp_path, policy, tokenizer, loss_type="sigmoid", beta=0.3, label_smoothing=0.2)
    sums = means_of(policy, pairs) * pairs["loss_mask"].sum(1)
    loss = trainer.cpo_loss(*sums.chunk(2))[0].mean()
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))


@new
def test_orpo_but_for_its_likelihood(tmp_path, policy, tokenizer, speaker, pairs):
    """The odds ratio is TRL's. The likelihood term is not, on purpose: TRL learns the prompt too and averages over the
    tokens of the batch; we learn the response only and every response counts the same, as in equation 6."""
    ours = ours_of(make(OFFLINE, "orpo", {"weight": 0.3}, policy, speaker), policy, pairs)
    trainer = trainer_of("ORPO", tmp_path, policy, tokenizer, beta=0.3)
    means = means_of(policy, pairs)
    ratio = trainer.odds_ratio_loss(*means.chunk(2))[0].mean()
    loss = -means[:3].mean() - ratio
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))
    inputs = {k: v[:3] for k, v in pairs.items() if k in ("input_ids", "attention_mask")}
    prompt_too = policy(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss
    assert abs(float(prompt_too + means[:3].mean())) > 0.1


# ---- online


@pytest.fixture
def said(speaker, policy, reference):
    """Responses of three prompts, two each, with what was known when they were said by a policy a little different."""
    lengths = [3, 5, 2, 4, 1, 6]
    rows = rows_of(speaker, lengths)
    batch = speaker.collate(rows)
    made = Rollouts.empty(6, 8, 0, 2)
    made.lengths[:] = torch.tensor(lengths)
    made.mask[:] = torch.arange(8) < made.lengths[:, None]
    every = []
    for model in (policy, reference):
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        every.append(logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1))
    generator = torch.Generator().manual_seed(3)
    for row, length in enumerate(lengths):
        mask = batch["loss_mask"][row, 1:]
        made.tokens[row, :length] = batch["input_ids"][row, 1:][mask]
        made.logprobs[row, :length] = every[0][row][mask] + 0.2 * torch.randn(length, generator=generator)
        made.reference[row, :length] = every[1][row][mask]
    scores = torch.randn(6, generator=generator)
    return made, rows, scores


def online(name, options, policy, speaker, said):
    made, rows, scores = said
    objective = make(ONLINE, name, options, policy, speaker, 1.0, 0.0)
    objective.credit(made, scores, made.logprobs - made.reference)
    return ours_of(objective, policy, made.attach(speaker.collate(rows), range(6), []))


def for_trl(said):
    """A generation batch of TRL: prompts, then completions padded on the right."""
    made, rows, _ = said
    start = rows[0].loss_mask.index(True)
    longest = int(made.lengths.max())
    return {
        "prompt_ids": torch.tensor([row.input_ids[:start] for row in rows]),
        "prompt_mask": torch.ones(6, start, dtype=torch.long),
        "completion_ids": made.tokens[:, :longest],
        "completion_mask": made.mask[:, :longest].long(),
        "old_per_token_logps": made.logprobs[:, :longest],
        "ref_per_token_logps": made.reference[:, :longest],
        "num_items_in_batch": made.lengths.sum(),
    }


@new
@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("grpo", {"kl_coefficient": 0.3}, {"loss_type": "grpo"}),
        ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ],
)
def test_grpo_and_its_variants(tmp_path, policy, tokenizer, speaker, reference, said, name, options, settings):
    made, _, scores = said
    ours = online(name, options, policy, speaker, said)
    trainer = trainer_of(
        "GRPO", tmp_path, policy, tokenizer, num_generations=2, max_completion_length=8, temperature=1.0, **settings
    )
    worth = scores
    if name == "dapo":  # the penalty of length is a reward function in TRL
        worth = scores - maths.overlong_penalty(made.lengths, 8, 0.2)
    advantages = maths.group_advantages(worth, 2, scaled=settings.get("scale_rewards") != "none")
    trainer.beta = options.get("kl_coefficient", 0.0)  # set late: else TRL fetches the reference by the policy's name
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, for_trl(said) | {"advantages": advantages})
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))


@new
def test_advantages_of_grpo_and_rloo(said):
    """TRL's own lines, cut out of its trainers and run on our scores."""
    _, _, scores = said
    source = textwrap.dedent(inspect.getsource(trl.GRPOTrainer._generate_and_score_completions))
    start = source.index("mean_grouped_rewards = torch.nanmean(rewards.view")
    end = source.index("is_std_zero = ")

    class Scaled:
        scale_rewards = "group"

    names = {"torch": torch, "rewards": scores, "num_generations": 2, "self": Scaled()}
    names["nanstd"] = lambda values, dim: values.std(dim=dim)
    exec(textwrap.dedent("        " + source[start:end].rsplit("\n", 1)[0]), names)
    torch.testing.assert_close(maths.group_advantages(scores, 2), names["advantages"])

    source = textwrap.dedent(inspect.getsource(trl.RLOOTrainer._generate_and_score_completions))
    start, end = source.index("scorable_counts = "), source.index("# Normalize advantages over")
    names = {"torch": torch, "rewards": scores, "grouped_rewards": scores.view(-1, 2), "num_generations": 2}
    exec(textwrap.dedent("    " + source[start:end]), names)
    torch.testing.assert_close(maths.leave_one_out(scores, 2), names["advantages"])


@new
def test_rloo(tmp_path, policy, tokenizer, speaker, said):
    made, _, scores = said
    ours = online("rloo", {"kl_coefficient": 0.3}, policy, speaker, said)
    trainer = trainer_of("RLOO", tmp_path, policy, tokenizer, num_generations=2, max_completion_length=8, beta=0.0)
    earned = scores - 0.3 * (made.logprobs - made.reference).sum(1)
    inputs = for_trl(said) | {"advantages": maths.leave_one_out(earned, 2), "old_logps": made.logprobs.sum(1)}
    loss = trainer._compute_loss(trainer.model, inputs)
    assert_same(ours, (loss.detach(), gradient_of(policy, loss)))


# ---- PPO


def lines_of_ppo(start, end):
    """A part of TRL's training loop, to be run on our tensors."""
    from trl.experimental.ppo.ppo_trainer import PPOTrainer

    source = inspect.getsource(PPOTrainer.train)
    begin = source.rindex("\n", 0, source.index(start)) + 1
    return textwrap.dedent(source[begin : source.index(end)])


@pytest.fixture
def round_of_ppo():
    """Responses of several lengths, padded to 7 tokens, as both sides hold them."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([3, 7, 1, 5])
    mask = torch.arange(7) < lengths[:, None]

    def noise():
        return torch.randn(4, 7, generator=generator)

    return {
        "mask": mask,
        "logprobs": torch.where(mask, noise() - 3, 0),
        "ref_logprobs": torch.where(mask, noise() - 3, 0),
        "values": torch.where(mask, noise(), 0),
        "scores": torch.randn(4, generator=generator),
        "lengths": lengths,
    }


@old
def test_rewards_and_advantages_of_ppo(round_of_ppo):
    """TRL pays the score one token behind the end where there is room for it, with a value of its own there; its lines
    are given responses that fill the width, where both pay it on the last token."""
    from trl.experimental.ppo.ppo_trainer import masked_whiten

    class Arguments:
        kl_estimator, kl_coef, whiten_rewards, gamma, lam = "k1", 0.3, True, 0.9, 0.8

    full = torch.ones(4, 7, dtype=torch.bool)
    names = {"torch": torch, "masked_whiten": masked_whiten, "args": Arguments(), "empty_cache": lambda: None}
    names |= {key: round_of_ppo[key].clone() for key in ("logprobs", "ref_logprobs", "values", "scores")}
    names |= {"responses": torch.zeros(4, 7), "sequence_lengths": torch.full((4,), 6)}
    names |= {"sequence_lengths_p1": torch.full((4,), 7), "padding_mask": ~full, "padding_mask_p1": ~full}
    exec(lines_of_ppo("# 4. compute rewards", "            # Do multiple epochs"), names)

    kl = maths.kl_k1(round_of_ppo["logprobs"], round_of_ppo["ref_logprobs"])
    rewards = maths.token_rewards(round_of_ppo["scores"], kl, full, 0.3)
    rewards = maths.whiten(rewards, full, shift_mean=False)
    # TRL divides by the deviation of a sample, we by that of all there is: the round is not a sample of itself.
    bessel = math.sqrt((full.sum() - 1) / full.sum())
    torch.testing.assert_close(rewards * bessel + rewards.mean() * (1 - bessel), names["rewards"], rtol=1e-5, atol=1e-5)
    advantages, returns = maths.gae(names["rewards"], round_of_ppo["values"], full, 0.9, 0.8)
    torch.testing.assert_close(returns, names["returns"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maths.whiten(advantages, full) * bessel, names["advantages"], rtol=1e-5, atol=1e-5)


@old
def test_losses_of_ppo(round_of_ppo):
    from trl.experimental.ppo.ppo_trainer import masked_mean

    class Arguments:
        cliprange, cliprange_value, vf_coef = 0.2, 0.2, 0.1

    mask, generator = round_of_ppo["mask"], torch.Generator().manual_seed(6)
    fresh = [(round_of_ppo[key] + 0.3 * torch.randn(4, 7, generator=generator)) for key in ("logprobs", "values")]
    advantages, returns = torch.randn(4, 7, generator=generator), torch.randn(4, 7, generator=generator)
    found = []
    for theirs in (True, False):
        new_logprobs, values = (values.clone().requires_grad_() for values in fresh)
        if theirs:
            names = {"torch": torch, "masked_mean": masked_mean, "args": Arguments(), "micro_batch_inds": slice(None)}
            names |= {"vpred": values, "mb_values": round_of_ppo["values"], "mb_return": returns}
            names |= {"new_logprobs": new_logprobs, "mb_logprobs": round_of_ppo["logprobs"], "mb_advantage": advantages}
            names |= {"padding_mask": ~mask, "padding_mask_p1": ~mask}
            exec(lines_of_ppo("vpredclipped = ", "                            accelerator.backward"), names)
            loss = names["loss"]
        else:
            policy, _ = maths.clipped_policy_loss(
                new_logprobs, round_of_ppo["logprobs"], advantages, mask.float(), 0.2, 0.2
            )
            value, _ = maths.clipped_value_loss(values, round_of_ppo["values"], returns, mask, 0.2)
            loss = (policy + 0.1 * value) / mask.sum()
        loss.backward()
        found.append((loss.detach(), new_logprobs.grad * mask, values.grad * mask))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
