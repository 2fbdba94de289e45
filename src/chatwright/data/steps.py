"""Answers as rows of steps: a step is a line that is not blank, and where it ends it can be judged.

A newline ends a step (Lightman et al. 2023, "Let's Verify Step by Step", train their generator to write one a line).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from chatwright.data.records import Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.tables import place_of
from chatwright.errors import ChatwrightError

# What a label says about its step. Neutral counts as right, as where Lightman et al. report their best results.
RIGHT = {1: True, 0: True, -1: False}


class Steps(NamedTuple):
    """An answer whose steps were judged.

    number: of the conversation in its file. rows: the rendered answer, alone in a list, where `rankings.Group` has
    several. ends: the place in the row where each step with a label ends. right: what the label says.
    """

    number: int
    rows: list[Rendered]
    ends: list[int]
    right: list[bool]


def step_ends(renderer: Renderer, tokens: Sequence[int], said: Sequence[bool]) -> list[int]:
    """Where the steps of an answer end: at the token that holds the newline, the last at the end of the answer.

    An answer of several turns has steps in each of them; a step ends with its turn.

    Read off the tokens and not off the text, so that what a model said has its steps where it said them.

    Args:
        tokens: of prompt and answer. said: the same length, True at the answer's own; it has at least one.

    Returns:
        Places among ``tokens``, at least one: an answer without words is one step.
    """
    ends: list[int] = []
    words = False  # since the last end
    answer = [place for place, here in enumerate(said) if here]
    for place in answer:
        before, newline, after = renderer.tokenizer.decode([tokens[place]], skip_special_tokens=True).partition("\n")
        words = words or bool(before.strip())
        over = newline or (place != answer[-1] and not said[place + 1])
        if over and words:
            ends.append(place)
        if over:
            words = bool(after.strip())
    return ends if ends and not words else [*ends, answer[-1]]


def render_all(renderer: Renderer, prompts: Sequence[Prompt], max_length: int) -> list[Steps]:
    """Render conversations whose last answer, a prompt's reference, was judged step by step; longer ones are left out.

    Raises:
        ChatwrightError: an answer without labels, with labels of other kinds, or with more or fewer than it has steps.
    """
    answers = []
    for number, prompt in enumerate(prompts):
        where, labels = f"{place_of(prompts, number)}: meta.steps", prompt.meta.get("steps")
        if not prompt.reference:
            raise ChatwrightError(f"{where}: there is no answer that they could label; end the conversation with one")
        try:
            right = [_is_right(label) for label in labels or ()]
        except (KeyError, TypeError) as error:
            raise ChatwrightError(
                f"{where}: is {labels!r:.40}; write a list of 1, 0, -1, true, false or null"
            ) from error
        row = renderer.answered(renderer.prompt(prompt.messages), renderer.answer(prompt.reference))
        ends = step_ends(renderer, row.input_ids, row.loss_mask)
        if len(right) != len(ends):
            raise ChatwrightError(f"{where}: has {len(right)} labels but the answer has {len(ends)} steps, one a line")
        labelled = [(end, label) for end, label in zip(ends, right, strict=True) if label is not None]
        if labelled and len(row) <= max_length:
            answers.append(Steps(number, [row], [end for end, _ in labelled], [label for _, label in labelled]))
    return answers


def collate(renderer: Renderer, answers: Sequence[Steps]) -> dict[str, Any]:
    """What `Renderer.collate` makes of the answers [B, T], with ``steps.ends`` and ``steps.right``, both [B, T] (bool):
    where a step ends, and whether it is right."""
    batch = renderer.collate([row for answer in answers for row in answer.rows])
    batch["steps.ends"], batch["steps.right"] = torch.zeros(2, *batch["input_ids"].shape, dtype=torch.bool)
    for number, answer in enumerate(answers):
        batch["steps.ends"][number, answer.ends] = True
        batch["steps.right"][number, answer.ends] = torch.tensor(answer.right)
    return batch


def _is_right(label: Any) -> bool | None:
    """None where nobody said: PRM800K labels no step after the first mistake."""
    return label if label is None or isinstance(label, bool) else RIGHT[label]
