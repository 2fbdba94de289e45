"""What people think of short English texts: the ratings behind VADER, from the source archive of `vaderSentiment`.

C.J. Hutto and E.E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text"
(ICWSM 2014): workers of Amazon Mechanical Turk, trained and checked, rated from -4 (extremely negative) to 4 (extremely
positive) how "most other people" would feel a text to be. The archive has every single rating but not who gave it.

What stands at the same place in two rows is not always from the same person. Of movie reviews it is, within a sheet of
30 consecutive rows: what a rating differs by from its row's mean correlates 0.34 with what the next row has at that
place, and 0.00 across the border of a sheet. Of tweets, editorials and product reviews it is not: the correlation is
0.00 to 0.01 at any distance, so there every rating is one person's, and the next row has others in another order.

The last two ratings of product reviews are equal in 75% of the rows, those at two other places in 46% on average, so
these two are hardly independent; nothing says why.
"""

import ast
import html
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from chatwright.data.sources.registry import fetch
from chatwright.errors import ChatwrightError

SHEET = 30  # rows that the same workers rated, in movie reviews


class Rated(NamedTuple):
    """A text with the ratings of several people, -4 to 4; ``sheet`` numbers every 30 consecutive texts of a source."""

    text: str
    ratings: tuple[int, ...]
    sheet: int


class Source(NamedTuple):
    """Where texts come from: the name of the file, and whether ``ratings[k]`` of one sheet are the same person's."""

    file: str
    has_raters: bool


SOURCES = {
    "tweet": Source("tweets", False),
    "movie": Source("movieReviewSnippets", True),
    "product": Source("amazonReviewSnippets", False),
    "editorial": Source("nytEditorialSnippets", False),
}


@cache
def texts(source: str) -> tuple[Rated, ...]:
    """All texts of one of `SOURCES`: 4,200 tweets, 10,605 sentences of movie reviews, 3,708 of product reviews and
    5,190 of editorials, with 536,520 ratings together; HTML entities are resolved
    and words are one space apart."""
    ratings = {
        name: ast.literal_eval(last) for name, _, _, last in _rows(f"{SOURCES[source].file}_anonDataRatings.txt")
    }
    return tuple(
        Rated(" ".join(html.unescape(text).split()), tuple(ratings[name]), number // SHEET)
        for number, (name, _, text) in enumerate(_rows(f"{SOURCES[source].file}_GroundTruth.txt"))
    )


def _rows(file: str) -> Iterator[list[str]]:
    folder = fetch(
        "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", kind="sdist"
    )
    archive = folder / "vaderSentiment-3.3.2" / "additional_resources" / "hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as opened:
        member = opened.extractfile(f"hutto_ICWSM_2014/{file}")
        if member is None:
            raise ChatwrightError(f"{archive}: has no {file}; delete {folder} and run again")
        lines = member.read().decode("utf-8-sig").splitlines()
    return (line.split("\t") for line in lines if line)
