"""Learn directly from comparisons, without a reward model: DPO and its kin."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel

from chatwright.data.batches import Batches
from chatwright.data.rankings import Group, collate, render_all
from chatwright.data.records import Comparison
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import load
from chatwright.errors import ChatwrightError
from chatwright.files import write
from chatwright.models.adapters import Adapter, adapt
from chatwright.models.eyes import freeze_eye, restore_eye
from chatwright.models.load import checkpoint_of, load_model
from chatwright.objectives.feedback.methods import OFFLINE, check, make
from chatwright.objectives.feedback.preference import Preference, response_logprobs
from chatwright.stages.base import Stage
from chatwright.training import distributed
from chatwright.training.loop import Training, best_device, fit, to_device


@dataclass
class Prefer(Stage):
    """Fine-tune a model on comparisons: dpo, conservative_dpo, ipo, kto, orpo or simpo.

    Writes ``model/`` and, with ``heldout``, ``scores.json``: in how many pairs the reward that the model implies is the
    larger for the response that was preferred (for kto: how many responses it judges as people did).

    Args:
        model: what the policy begins as: the fine-tuned model. It is the reference too, which is asked
            once for every response.
        comparisons: rankings, chosen and rejected responses, or (kto) single responses with a label.
        heldout: comparisons of other prompts, to test on.
        method: how to learn; each is described in ``objectives/feedback``.
        options: numbers in the place of the method's defaults, such as ``{beta: 0.2}``.
        batch_size: prompts in a step; all pairs of a prompt, whoever judged them, are learned at once.
        micro_batch: prompts computed at once; 0 for the whole step.
        epochs: passes over the comparisons.
        max_length: longer responses with their prompts, in tokens, are left out.
        seed: of the order, and of an adapter's first weights.
        adapter: learn that alone instead of the whole model; saved for `peft` in ``adapter/``, and in ``model/``.
        training: settings of the loop.
    """

    together: ClassVar[bool] = True

    model: str
    comparisons: Path
    heldout: Path | None = None
    method: str = "dpo"
    options: dict[str, float] = field(default_factory=dict)
    batch_size: int = 16
    micro_batch: int = 0
    epochs: float = 1.0
    max_length: int = 1024
    seed: int = 0
    adapter: Adapter = field(default_factory=Adapter)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-4, warmup=0.1))

    def run(self, out: Path) -> None:
        check(OFFLINE, self.method, self.options)
        torch.manual_seed(self.seed)
        folder = checkpoint_of(self.model)
        renderer = self.adapter.prepare(Renderer.load(folder))
        policy = load_model(folder)
        objective = make(OFFLINE, self.method, self.options, policy, renderer)
        taught = self._groups(renderer, self.comparisons)
        tested = self._groups(renderer, self.heldout) if self.heldout else []
        adapted = adapt(policy, renderer, self.adapter) if self.adapter.method else None
        with adapted.disabled() if adapted else nullcontext():
            groups = self._prepare(objective, [*taught, *tested])
        taught, tested = groups[: len(taught)], groups[len(taught) :]
        size = min(self.batch_size, len(taught))
        steps = max(1, round(self.epochs * len(taught) / size))
        loader = Batches(
            taught,
            lambda some: collate(renderer, some),
            size,
            steps,
            self.seed,
            self.micro_batch,
            list(map(longest, taught)),
        )
        fit(objective, loader, self.training, out, "prefer")
        if not distributed.first():
            return
        if tested:
            write(out / "scores.json", json.dumps(self._test(objective, tested), indent=1))
        restore_eye(policy)
        if adapted:
            adapted.finish(out / "adapter")
        objective.save(out / "model")

    def _groups(self, renderer: Renderer, path: Path) -> list[Group]:
        alone = self.method == "kto"
        groups = render_all(renderer, load(path, Comparison), self.max_length, least=1 if alone else 2)
        groups = [group for group in groups if group.pairs or (alone and len(group.rows) == 1)]
        if not groups:
            raise ChatwrightError(
                f"{path}: no comparison within max_length={self.max_length} prefers one response to another; "
                "collect more" + ("" if alone else ", or use method kto for single responses with a label")
            )
        return groups

    def _prepare(self, objective: Preference, groups: list[Group]) -> list[Group]:
        """Add to every group what the method compares with: responses to other prompts (kto), and the log-probabilities
        under the reference, which is the policy before it is trained."""
        if self.method == "kto" and len(groups) > 1:
            shift = int(np.random.default_rng(self.seed).integers(1, len(groups)))
            others = [groups[(i + shift) % len(groups)].rows[0] for i in range(len(groups))]
            groups = [
                group._replace(elsewhere=[crossed(group.rows[0], other)])
                for group, other in zip(groups, others, strict=True)
            ]
        rows = freeze_eye(objective.policy, [row for group in groups for row in [*group.rows, *group.elsewhere]])
        known = reference_logprobs(objective, rows) if objective.has_reference else []
        found, at = [], 0
        for group in groups:
            middle, end = at + len(group.rows), at + len(group.rows) + len(group.elsewhere)
            found.append(group._replace(rows=rows[at:middle], elsewhere=rows[middle:end], reference=known[at:end]))
            at = end
        return found

    def _test(self, objective: Preference, tested: Sequence[Group]) -> dict[str, Any]:
        right = total = 0.0
        size = self.micro_batch or self.batch_size
        with torch.no_grad():
            for start in range(0, len(tested), size):
                batch = collate(objective.renderer, tested[start : start + size])
                part, weight = objective.loss(to_device(batch, best_device())).metrics["accuracy"]
                right, total = right + float(part), total + float(weight)
        return {"accuracy": right / total, "n": int(total), "chance": 0.5}


def longest(group: Group) -> int:
    return max(map(len, group.rows))


def crossed(row: Rendered, other: Rendered) -> Rendered:
    """The prompt of a row with the response of another."""
    prompt = row.loss_mask.index(True)
    said = [token for token, wanted in zip(other.input_ids, other.loss_mask, strict=True) if wanted]
    return Rendered([*row.input_ids[:prompt], *said], [False] * prompt + [True] * len(said), row.media)


@torch.no_grad()
def reference_logprobs(objective: Preference, rows: Sequence[Rendered], batch_size: int = 32) -> list[float]:
    """Of every response under the policy as it is now, rows of like length computed together."""
    policy: PreTrainedModel = objective.policy.to(best_device())
    found = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for chosen in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        batch = to_device(objective.renderer.collate([rows[i] for i in chosen]), best_device())
        found[chosen] = response_logprobs(policy, objective.renderer, batch).cpu()
    return found.tolist()
