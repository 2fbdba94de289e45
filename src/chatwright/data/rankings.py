"""Comparisons as rows: the responses to a prompt, with how those who judged them rank them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from chatwright.data.records import Comparison, is_ratings
from chatwright.data.render import Rendered, Renderer
from chatwright.data.tables import place_of
from chatwright.errors import ChatwrightError


class Group(NamedTuple):
    """Comparisons of the same responses by one judge or several, as rows.

    number: of the first of them in its file. rows: the rendered responses. places: of these among all the responses.
    rankings: [J][N], one by each judge. ratings: [J][N], nan where the judge gave no number. utilities: [N], empty
    where nobody knows them.
    """

    number: int
    rows: list[Rendered]
    places: list[int]
    rankings: list[list[int]]
    ratings: list[list[float]]
    utilities: list[float]

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


def render_all(renderer: Renderer, comparisons: Sequence[Comparison], max_length: int) -> list[Group]:
    """Render every response after its prompt, once for all who judged the same responses.

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
        if len(kept) > 1:
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
    """What `Renderer.collate` makes of all responses [N], with ``comparison.ranks`` [N, J], ``comparison.ratings``
    [N, J] (nan where there is none) and ``comparison.groups`` [N], the same number for the same prompt."""
    batch = renderer.collate([row for group in groups for row in group.rows])
    judges = max(len(group.rankings) for group in groups)
    ranks = [group.rankings + [[0] * len(group.rows)] * (judges - len(group.rankings)) for group in groups]
    batch["comparison.ranks"] = torch.cat(
        [torch.tensor(rankings).T for rankings in ranks]
    )  # who did not judge ties all
    unrated = [[[math.nan] * len(group.rows)] * (judges - len(group.ratings)) for group in groups]
    batch["comparison.ratings"] = torch.cat(
        [torch.tensor(group.ratings + rest).T for group, rest in zip(groups, unrated, strict=True)]
    )
    batch["comparison.groups"] = torch.tensor([i for i, group in enumerate(groups) for _ in group.rows])
    return batch
