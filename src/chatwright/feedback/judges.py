"""Who says what an answer is worth: a reward model, several that score as one, or a plain Python function."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from chatwright.data.records import Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.errors import ChatwrightError
from chatwright.feedback.verifiers import Verifier, function_of
from chatwright.models.heads import RewardEnsemble, RewardModel, load_scorer, score_all

Judge = RewardModel | RewardEnsemble | Verifier


def judge_of(name: str | Sequence[str], answering: PretrainedConfig, device: torch.device) -> Judge:
    """The judge that a setting names.

    Args:
        name: the artifact or folder of a reward model, a list of them, or a function as `function_of` reads it.
        answering: of the model whose answers are to be judged; a reward model reads its tokens.
        device: where a reward model is to compute.

    Raises:
        ChatwrightError: there is no such judge, or a reward model has another vocabulary.
    """
    if isinstance(name, str) and ":" in name:
        return function_of(name)
    scorer = load_scorer(name)
    words = answering.get_text_config().vocab_size
    if any(member.backbone.config.get_text_config().vocab_size != words for member in members_of(scorer)):
        raise ChatwrightError(f"{name}: has another vocabulary than the model it is to judge; use the same tokenizer")
    return scorer.to(device).eval()


def scores_of(
    judge: Judge,
    renderer: Renderer,
    rows: Sequence[Rendered],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    batch_size: int = 64,
) -> Tensor:
    """[N]: what a judge says of N answers.

    Args:
        rows: prompts and answers, rendered: what a reward model reads. prompts, texts: what a function reads.
        batch_size: rows that a reward model reads at once.
    """
    if isinstance(judge, RewardModel | RewardEnsemble):
        return score_all(judge, renderer, rows, batch_size)
    return torch.tensor([float(judge(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)])


def members_of(judge: Judge | None) -> list[RewardModel]:
    """The reward models that a judge consists of."""
    if isinstance(judge, RewardEnsemble):
        return [cast(RewardModel, member) for member in judge.members]
    return [judge] if isinstance(judge, RewardModel) else []
