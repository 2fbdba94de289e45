"""Heads on top of any transformers model: one number for an answer, for each of its steps, or for every token."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.steps import step_ends
from chatwright.errors import ChatwrightError
from chatwright.models.load import checkpoint_of, load_model
from chatwright.models.outputs import hidden_states


class ScalarHead(nn.Linear):
    """[..., D] -> [...]: a linear map to one number, std 1 / sqrt(D + 1), bias 0 (Stiennon et al. 2020, appendix B)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.normal_(self.weight, std=1 / math.sqrt(width + 1))
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.to(self.weight.dtype)).squeeze(-1)


class RewardModel(nn.Module):
    """A transformers model with a scalar head on its last hidden state: a reward model, or the critic of PPO.

    On disk it is the model's own checkpoint, which ``from_pretrained`` opens, with the head beside it in
    ``score_head.safetensors``.
    """

    file: ClassVar[str] = "score_head.safetensors"

    def __init__(self, backbone: PreTrainedModel, head: ScalarHead | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head or ScalarHead(backbone.config.get_text_config().hidden_size)

    def scores(self, inputs: dict[str, Any]) -> Tensor:
        """[B]: the score of every row, read at its last real token, wherever the padding is."""
        real = inputs["attention_mask"].bool()
        last = real & (real.flip(1).cumsum(1).flip(1) == 1)
        return self.head(hidden_states(self.backbone, inputs, last))

    def values(self, inputs: dict[str, Any]) -> Tensor:
        """[B, T]: entry t is the value of the state before token t; entry 0 is 0."""
        values = self.head(hidden_states(self.backbone, inputs)[:, :-1])
        return torch.cat([torch.zeros_like(values[:, :1]), values], 1)

    def save(self, folder: Path) -> None:
        self.backbone.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}, folder / self.file)

    @classmethod
    def load(cls, name: str | Path) -> "RewardModel":
        """Read what `save` wrote, a `ProcessRewardModel` too; ``name`` is a folder of it or an artifact.

        Raises:
            ChatwrightError: the folder holds a model without a score head.
        """
        folder = checkpoint_of(name)
        by_step = (folder / ProcessRewardModel.file).exists()
        file = folder / (ProcessRewardModel.file if by_step else RewardModel.file)
        if not file.exists():
            raise ChatwrightError(f"{folder}: no {file.name}, so no reward model; make one with `chatwright reward`")
        backbone = load_model(folder)
        head = ScalarHead(backbone.config.get_text_config().hidden_size)
        head.load_state_dict(load_file(file))
        return ProcessRewardModel(backbone, Renderer.load(folder), head) if by_step else RewardModel(backbone, head)


class ProcessRewardModel(RewardModel):
    """A reward model that judges an answer step by step (Lightman et al. 2023, "Let's Verify Step by Step").

    The score of an answer is a probability, made of those of its steps by ``aggregation``: "min", the probability of
    the least likely step, or "product", that all are right. Lightman et al. take the product and find the minimum
    almost as good; it is the default here (and in Math-Shepherd, Wang et al. 2023) because the product pays a policy
    for saying less: every further step lowers it, however good.

    Args:
        renderer: of this checkpoint; it tells which tokens end a step.
    """

    file: ClassVar[str] = "step_head.safetensors"

    def __init__(
        self, backbone: PreTrainedModel, renderer: Renderer, head: ScalarHead | None = None, aggregation: str = "min"
    ) -> None:
        super().__init__(backbone, head)
        self.renderer, self.aggregation = renderer, aggregation

    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """[B, T]: the log-odds that the step which ends at a token is right; they mean nothing at other tokens."""
        return self.head(hidden_states(self.backbone, inputs))

    def scores(self, inputs: dict[str, Any]) -> Tensor:
        """[B] probabilities. An answer is what ``inputs["loss_mask"]`` marks.

        Raises:
            ChatwrightError: an aggregation that is not known.
        """
        tokens, said = inputs["input_ids"].tolist(), inputs["loss_mask"].tolist()
        ends = torch.zeros_like(inputs["loss_mask"])
        for row, places in enumerate(step_ends(self.renderer, *both) for both in zip(tokens, said, strict=True)):
            ends[row, places] = True
        return answer_probability(self.logits(inputs), ends, self.aggregation)


def answer_probability(logits: Tensor, ends: Tensor, aggregation: str) -> Tensor:
    """The probabilities of steps as one for each answer.

    Args:
        logits: [B, T]. ends: [B, T] (bool), where a step ends, at least once in every row.
        aggregation: "min" or "product".

    Returns:
        [B].

    Raises:
        ChatwrightError: an aggregation that is not known.
    """
    logprobs = torch.where(ends, F.logsigmoid(logits.float()), 0.0)  # 0 changes neither a minimum nor a sum
    if aggregation == "min":
        return logprobs.amin(1).exp()
    if aggregation == "product":
        return logprobs.sum(1).exp()
    raise ChatwrightError(f"aggregation {aggregation!r} is not known; use min or product")


class RewardEnsemble(nn.Module):
    """Several reward models that score as one, so that a policy cannot live off the errors of any of them.

    Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization". Members are what the reward stage makes
    with different seeds; the paper takes 5.

    Args:
        members: reward models of one vocabulary.
        aggregation: "mean"; "worst_case", the lowest score, the default because nothing about it is to be tuned; or
            "uncertainty_weighted", the mean less ``penalty`` times the members' variance.
        penalty: in units of 1 / score. The paper finds that results hardly depend on it.

    Raises:
        ChatwrightError: no members, members of different vocabularies, or an aggregation that is not known.
    """

    def __init__(self, members: Sequence[RewardModel], aggregation: str = "worst_case", penalty: float = 0.5) -> None:
        super().__init__()
        sizes = {len(member.backbone.get_input_embeddings().weight) for member in members}
        if len(sizes) != 1:
            raise ChatwrightError(
                f"an ensemble of {len(members)} reward models with vocabularies of {sorted(sizes)} tokens; "
                "name reward models that were trained from the same model"
            )
        if aggregation not in ("mean", "worst_case", "uncertainty_weighted"):
            raise ChatwrightError(
                f"aggregation {aggregation!r} is not known; use mean, worst_case or uncertainty_weighted"
            )
        self.members = nn.ModuleList(members)
        self.aggregation, self.penalty = aggregation, penalty

    def scores(self, inputs: dict[str, Any]) -> Tensor:
        """[B], as `RewardModel.scores`."""
        each = torch.stack([cast(RewardModel, member).scores(inputs) for member in self.members])
        if self.aggregation == "mean":
            return each.mean(0)
        if self.aggregation == "worst_case":
            return each.amin(0)
        return each.mean(0) - self.penalty * each.var(0, correction=0)


def load_scorer(names: str | Sequence[str]) -> RewardModel | RewardEnsemble:
    """A reward model, or the ensemble of several, from their artifacts or folders.

    Raises:
        ChatwrightError: as `RewardModel.load` and `RewardEnsemble`.
    """
    if isinstance(names, str):
        return RewardModel.load(names)
    return RewardEnsemble([RewardModel.load(name) for name in names])


@torch.no_grad()
def score_all(
    model: RewardModel | RewardEnsemble, renderer: Renderer, rows: Sequence[Rendered], batch_size: int = 64
) -> Tensor:
    """[N] scores of rendered answers. Those to one prompt should stand together: it is read only once then."""
    scores = torch.zeros(len(rows))
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        batch = renderer.collate(rows[part])
        scores[part] = model.scores({name: value.to(device) for name, value in batch.items()}).cpu()
    return scores
