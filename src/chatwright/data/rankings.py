"""Comparisons as rows: the responses to a prompt, with how those who judged them rank them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chatwright.data.records import Comparison, is_ratings
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.tables import place_of
from chatwright.errors import ChatwrightError


class Group(NamedTuple):
    """Comparisons of the same responses by one judge or several, as rows.

    number: of the first of them in its file. rows: the rendered responses. places: of these among all the responses.
    rankings: [J][N], one by each judge. ratings: [J][N], nan where the judge gave no number. utilities: [N], empty
    where nobody knows them. elsewhere: rows that nobody judged. reference: log-probabilities of ``rows`` and then
    ``elsewhere``, where a method asks for them.
    """

    number: int
    rows: list[Rendered]
    places: list[int]
    rankings: list[list[int]]
    ratings: list[list[float]]
    utilities: list[float]
    elsewhere: Sequence[Rendered] = ()
    reference: Sequence[float] = ()

    @property
    def pairs(self) -> bool:
        return any(len(set(ranks)) > 1 for ranks in self.rankings)

    @property
    def rated(self) -> list[float]:
        """All numbers that judges gave."""
        return [rating for ratings in self.ratings for rating in ratings if not math.isnan(rating)]

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

    Raises:
        ChatwrightError: a comparison's ratings are not one number for each response.
    """
    groups: dict[Any, Group] = {}
    for number, comparison in enumerate(comparisons):
        given = comparison.meta.get("ratings", [None] * len(comparison.responses))
        if not is_ratings(given, len(comparison.responses)):
            raise ChatwrightError(
                f"{place_of(comparisons, number)}: meta.ratings: is {given!r:.40}; write {len(comparison.responses)} "
                "numbers, one for each response, null where there is none"
            )
        ratings = [math.nan if rating is None else float(rating) for rating in given]
        key = (comparison.messages, comparison.responses)
        if key in groups:
            group = groups[key]
            group.rankings.append([comparison.ranks[place] for place in group.places])
            group.ratings.append([ratings[place] for place in group.places])
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
                [[ratings[place] for place in kept]],
                [utilities[place] for place in kept] if utilities else [],
            )
    return list(groups.values())


def collate(renderer: Renderer, groups: Sequence[Group]) -> dict[str, Any]:
    """What `Renderer.collate` makes of all responses, N with those from elsewhere, which come last.

    Beside it ``comparison.ranks`` [N, J]; ``comparison.ratings`` [N, J], nan where there is none;
    ``comparison.groups`` [N], the same number for the same prompt and -1 for rows from elsewhere;
    ``reference.logprobs`` [N] if the groups know them.
    """
    rows = [row for group in groups for row in group.rows]
    elsewhere = [row for group in groups for row in group.elsewhere]
    batch: dict[str, Any] = renderer.collate([*rows, *elsewhere])
    # Who did not judge ties all; a half is neither the rank of a good single response nor that of a bad one.
    batch["comparison.ranks"] = _by_judge([group.rankings for group in groups], len(elsewhere), 0.5)
    batch["comparison.ratings"] = _by_judge([group.ratings for group in groups], len(elsewhere), math.nan)
    numbers = [i for i, group in enumerate(groups) for _ in group.rows]
    batch["comparison.groups"] = torch.tensor(numbers + [-1] * len(elsewhere))
    if all(group.reference for group in groups):
        known = [value for group in groups for value in group.reference[: len(group.rows)]]
        known += [value for group in groups for value in group.reference[len(group.rows) :]]
        batch["reference.logprobs"] = torch.tensor(known)
    return batch


def _by_judge(groups: Sequence[Sequence[Sequence[float]]], elsewhere: int, absent: float) -> Tensor:
    """[N, J] of numbers [J][n] for each group, the judges that a group lacks and rows from elsewhere ``absent``."""
    judges = max(map(len, groups))
    parts = [torch.tensor([*given, *[[absent] * len(given[0])] * (judges - len(given))]).T for given in groups]
    return torch.cat([*parts, torch.full((elsewhere, judges), absent)])
