"""Texts that people rated one by one become all that reinforcement learning from human feedback takes."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chatwright.data.records import Comparison, Demonstration, Document, Message, Part, Prompt
from chatwright.data.sources import vader
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.evaluation.claims import percent
from chatwright.evaluation.findings import Findings, Table
from chatwright.evaluation.metrics import bootstrap
from chatwright.stages.base import Stage

QUESTIONS = {
    "tweet": "Write a tweet.",
    "movie": "Write a sentence of a movie review.",
    "product": "Write a sentence of a product review.",
    "editorial": "Write a sentence of a newspaper editorial.",
}
LEAST = 3  # words that the text of a prompt goes on with


class Pair(NamedTuple):
    """Two texts of one source."""

    source: str
    one: vader.Rated
    other: vader.Rated

    @property
    def ratings(self) -> list[tuple[int, int]]:
        """Of both texts, by every rater."""
        return list(zip(self.one.ratings, self.other.ratings, strict=False))

    def rater(self, place: int) -> str:
        """Who gave both ratings at this place, as far as it is known."""
        known = vader.SOURCES[self.source].has_raters and self.one.sheet == self.other.sheet
        return f"{self.source}-{self.one.sheet}-{place}" if known else f"{self.source}-{place}"


@dataclass
class Ratings(Stage):
    """Fetch English texts that people rated from extremely negative to extremely positive (`vaderSentiment`).

    Of two texts a rater prefers the one that he or she rated higher: human judgements with all their noise to fit a
    reward model on, as Ziegler et al. 2019 had them for sentiment (https://arxiv.org/abs/1909.08593). One half of the
    ratings is for a reward model, the other half for a judge that trains no policy.

    Writes, as Parquet, ``documents`` (the texts), ``demonstrations`` ("Write a tweet." and a tweet), ``comparisons`` of
    two texts by the one half of the raters and ``judge_comparisons`` by the other, and ``prompts``, which end with the
    first words of an answer; the same with ``_heldout`` of texts that none of these has; and ``findings.json``, how far
    raters agree on the held-out pairs.

    Only within a sheet of movie reviews both ratings are known to be by one person, "movie-12-7" being the one at place
    7 of sheet 12, who may have rated other sheets too. Anywhere else, "tweet-7", they are two people's, one for each
    text (`chatwright.data.sources.vader`). A sheet of movie reviews is all praise or all blame; so that a reward model
    can tell one from the other, texts of different sheets are compared too. Two equal ratings prefer neither text and
    are left out.

    Args:
        pairs: with about how many texts of its sheet a text is compared, and with how many of any sheet.
        raters: how many of those who rated a text are taken; most texts have 20, a thousand tweets more than 90.
        words: of a text that a prompt begins its answer with.
        prompts: to practise on. prompts_heldout: to be tested on.
        heldout: part of the sheets that is held out.
        limit: use only the first so many sheets of every source; 0 for all.
        seed: of what is held out, the pairs and the prompts.
    """

    pairs: int = 1
    raters: int = 20
    words: int = 4
    prompts: int = 4000
    prompts_heldout: int = 400
    heldout: float = 0.1
    limit: int = 0
    seed: int = 0

    def run(self, out: Path) -> None:
        rng = random.Random(self.seed)
        sheets = [(source, sheet) for source in QUESTIONS for sheet in self._sheets(source)[: self.limit or None]]
        rng.shuffle(sheets)
        count = round(self.heldout * len(sheets))
        if not 0 < count < len(sheets):
            raise ChatwrightError(f"heldout={self.heldout} holds out {count} of {len(sheets)} sheets; change it")
        self._save(sheets[count:], self.prompts, out, "", rng)
        tested = self._save(sheets[:count], self.prompts_heldout, out, "_heldout", rng)
        _agreement(tested).save(out)

    def _sheets(self, source: str) -> list[list[vader.Rated]]:
        """The sheets of a source; of equal texts only the first is kept."""
        sheets: dict[int, list[vader.Rated]] = defaultdict(list)
        seen: set[str] = set()
        for rated in vader.texts(source):
            if rated.text not in seen:
                seen.add(rated.text)
                sheets[rated.sheet].append(rated._replace(ratings=rated.ratings[: self.raters]))
        return list(sheets.values())

    def _save(
        self, sheets: list[tuple[str, list[vader.Rated]]], prompts: int, out: Path, ending: str, rng: random.Random
    ) -> list[Pair]:
        """Write all records of some sheets; the pairs of texts that were compared."""
        texts = [(source, rated.text) for source, sheet in sheets for rated in sheet]
        rng.shuffle(texts)
        save((Document((Part.of_text(t),), {"source": s}) for s, t in texts), out / f"documents{ending}.parquet")
        answers = [Demonstration((_ask(s), Message.of("assistant", t)), {"source": s}) for s, t in texts]
        save(answers, out / f"demonstrations{ending}.parquet")
        all_of = {
            source: [rated for name, sheet in sheets if name == source for rated in sheet] for source in QUESTIONS
        }
        pairs = [
            pair
            for _ in range(self.pairs)
            for source, together in [*sheets, *all_of.items()]
            for pair in _paired(source, together, rng)
        ]
        for half, name in enumerate(("comparisons", "judge_comparisons")):
            save((one for pair in pairs for one in _judged(pair, half)), out / f"{name}{ending}.parquet")
        long = [(s, t.split(" ")) for s, t in texts if t.count(" ") + 1 >= self.words + LEAST]
        if len(long) < prompts:
            raise ChatwrightError(f"prompts{ending}={prompts}: only {len(long)} texts are long enough; ask for fewer")
        begun = (
            Prompt((_ask(source), Message.of("assistant", " ".join(words[: self.words]))), meta={"source": source})
            for source, words in long[:prompts]
        )
        save(begun, out / f"prompts{ending}.parquet")
        return pairs


def _ask(source: str) -> Message:
    return Message.of("user", QUESTIONS[source])


def _paired(source: str, texts: list[vader.Rated], rng: random.Random) -> list[Pair]:
    """Every text with another one, chosen at random."""
    order = rng.sample(texts, len(texts))
    return [Pair(source, one, other) for one, other in zip(order[::2], order[1::2], strict=False)]


def _judged(pair: Pair, half: int) -> list[Comparison]:
    """The judgements of one half of the raters; neighbouring places, which may not be independent, are in one half."""
    return [
        Comparison(
            (_ask(pair.source),),
            (pair.one.text, pair.other.text),
            (0, 1) if ratings[0] > ratings[1] else (1, 0),
            pair.rater(place),
            "ratings",
            {"ratings": list(ratings), "source": pair.source},
        )
        for place, ratings in enumerate(pair.ratings)
        if place // 2 % 2 == half and ratings[0] != ratings[1]
    ]


def _agreement(pairs: Sequence[Pair]) -> Findings:
    """How far a rater agrees with another one, and with the mean of all others: over all pairs and by source."""
    by_source = {
        source: _figures(some) for source in QUESTIONS if (some := [pair for pair in pairs if pair.source == source])
    }
    everything = _figures(pairs)
    return Findings(
        title="How far people agree",
        text="Of two texts, which one is more positive? Pairs that a rater finds equal are left out.",
        numbers={**everything, "by_source": by_source},
        tables=[
            Table(
                "Agreement",
                "A rater with another one, and with the mean of all others, about what a perfect judge could reach.",
                ["texts", "pairs", "found equal", "with another", "with all others"],
                [
                    [
                        name,
                        part["pairs"],
                        percent(part["ties"]),
                        *(percent(part[key]["score"]) for key in ("agreement", "ceiling")),
                    ]
                    for name, part in (*by_source.items(), ("all", everything))
                ],
            )
        ],
    )


def _figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """``agreement`` of a rater with another, ``ceiling``: with the mean of all others, ``ties`` and ``pairs``.

    Whoever finds a pair equal is left out; half of those whom a mean of 0 meets are right.
    """
    agreed, expected, equal = [], [], []  # (right, all) of every pair, each rater counting once
    for pair in pairs:
        one, other = np.array(pair.ratings).T
        difference = one - other
        order = np.sign(difference[difference != 0])
        if len(order) > 1:
            agreed.append((((order.sum() * order - 1) / (len(order) - 1) + 1).sum() / 2, len(order)))
        others = np.sign(difference.sum() - difference)[difference != 0]
        expected.append(((1 + others * order).sum() / 2, len(order)))
        equal.append((len(difference) - len(order), len(difference)))
    return {
        "agreement": _share(np.array(agreed)),
        "ceiling": _share(np.array(expected)),
        "ties": float(np.divide(*np.sum(equal, 0))),
        "pairs": len(pairs),
    }


def _share(right: np.ndarray) -> dict[str, float]:
    """The share of what was right [N, 2] and its interval; all judgements of a pair are drawn together."""
    low, high = bootstrap(right, range(len(right)))
    return {"score": float(np.divide(*right.sum(0))), "low": low, "high": high, "n": int(right[:, 1].sum())}
