"""Comparisons as rows: the responses to a prompt, with how those who judged them rank them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from chatwright.data.records import Comparison
from chatwright.data.render import Rendered, Renderer


class Group(NamedTuple):
    """Comparisons of the same responses by one judge or several, as rows.

    number: of the first of them in its file. rows: the rendered responses. places: of these among all the responses.
    rankings: [J][N], one by each judge. utilities: [N], empty where nobody knows them. elsewhere: rows that nobody
    judged. reference: log-probabilities of ``rows`` and then ``elsewhere``, where a method asks for them.
    """

    number: int
    rows: list[Rendered]
    places: list[int]
    rankings: list[list[int]]
    utilities: list[float]
    elsewhere: Sequence[Rendered] = ()
    reference: Sequence[float] = ()

    @property
    def pairs(self) -> bool:
        return any(len(set(ranks)) > 1 for ranks in self.rankings)

    @property
    def best(self) -> int:
        """The response that the judges rank highest together."""
        sums = [sum(ranks) for ranks in zip(*self.rankings, strict=True)]
        return sums.index(min(sums))


def render_all(renderer: Renderer, comparisons: Sequence[Comparison], max_length: int, least: int = 2) -> list[Group]:
    """Render every response after its prompt, once for all who judged the same responses.

    Args:
        max_length: longer responses with their prompts, in tokens, are left out.
        least: prompts with fewer responses are left out.
    """
    groups: dict[Any, Group] = {}
    for number, comparison in enumerate(comparisons):
        key = (comparison.messages, comparison.responses)
        if key in groups:
            group = groups[key]
            group.rankings.append([comparison.ranks[place] for place in group.places])
            continue
        prompt = renderer.prompt(comparison.messages)
        finished = comparison.meta.get("finished") or [True] * len(comparison.responses)
        rows = [
            renderer.answered(prompt, renderer.answer(text, end))
            for text, end in zip(comparison.responses, finished, strict=True)
        ]
        kept = [place for place, row in enumerate(rows) if len(row) <= max_length]
        utilities = comparison.meta.get("utilities") or []
        if len(kept) >= least:
            groups[key] = Group(
                number,
                [rows[place] for place in kept],
                kept,
                [[comparison.ranks[place] for place in kept]],
                [utilities[place] for place in kept] if utilities else [],
            )
    return list(groups.values())


def collate(renderer: Renderer, groups: Sequence[Group]) -> dict[str, Any]:
    """What `Renderer.collate` makes of all responses, N with those from elsewhere, which come last.

    Beside it ``comparison.ranks`` [N, J]; ``comparison.groups`` [N], the same number for the same prompt and -1 for
    rows from elsewhere; ``reference.logprobs`` [N] if the groups know them.
    """
    rows = [row for group in groups for row in group.rows]
    elsewhere = [row for group in groups for row in group.elsewhere]
    batch: dict[str, Any] = renderer.collate([*rows, *elsewhere])
    judges = max(len(group.rankings) for group in groups)
    # Who did not judge ties all; a half is neither the rank of a good single response nor that of a bad one.
    absent = [[[0.5] * len(group.rows)] * (judges - len(group.rankings)) for group in groups]
    ranks = [torch.tensor([*group.rankings, *rest]).T for group, rest in zip(groups, absent, strict=True)]
    batch["comparison.ranks"] = torch.cat([*ranks, torch.full((len(elsewhere), judges), 0.5)])
    numbers = [i for i, group in enumerate(groups) for _ in group.rows]
    batch["comparison.groups"] = torch.tensor(numbers + [-1] * len(elsewhere))
    if all(group.reference for group in groups):
        known = [value for group in groups for value in group.reference[: len(group.rows)]]
        known += [value for group in groups for value in group.reference[len(group.rows) :]]
        batch["reference.logprobs"] = torch.tensor(known)
    return batch
