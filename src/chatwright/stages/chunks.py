"""Long work on many rows, chunk by chunk; a chunk that is on disk is not done again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chatwright.files import write
from chatwright.training import distributed
from chatwright.training.progress import Bar

Worker = Callable[[list[int]], list[Any]]


def in_chunks(order: Sequence[int], size: int, state: Path, title: str, begin: Callable[[], Worker]) -> list[Any]:
    """What a worker makes of every row, in order; several processes take turns with the chunks.

    Args:
        order: the rows. size: rows in a chunk.
        state: the folder that keeps finished chunks, as JSON. title: of the files and of the progress.
        begin: loads what the work takes and gives the worker, which makes one thing that JSON can hold of each row of a
            chunk; not called if all is done.
    """
    chunks = [list(order[i : i + size]) for i in range(0, len(order), size)]
    files = [state / f"{title}-{number:05d}.json" for number in range(len(chunks))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if mine := distributed.agreed(missing)[distributed.rank() :: distributed.size()]:
        work = begin()
        done = len(order) - sum(len(chunks[number]) for number in missing)
        with Bar(title, done + sum(len(chunks[number]) for number in mine), start=done) as bar:
            for number in mine:
                write(files[number], json.dumps(work(chunks[number]), ensure_ascii=False))
                bar.advance(len(chunks[number]))
    distributed.barrier()
    return [made for file in files for made in json.loads(file.read_text(encoding="utf-8"))]
