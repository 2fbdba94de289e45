"""What the machine can do at the model's shapes, measured in the same run, and ours as a share of it."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pieces
import torch
from torch.nn import functional as F
from transformers import AutoConfig

TOKENS = 1024  # in a step
BYTES = 2  # of a weight in bf16


def measured(folder: Path, rows: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Rates in GFLOP/s and GB/s; shares where ``rows`` has the work."""
    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(folder / "model")
    layers, head = shapes(config)
    conversations = pieces.rows(folder / "conversations.jsonl")
    supervised = pieces.supervised(folder)
    # 2 for every weight and token forward, and twice that backward; the head sees supervised tokens alone.
    flops = 6 * (
        sum(k * n for k, n in layers) * sum(row["tokens"] for row in conversations) + head[0] * head[1] * supervised
    )
    weights = sum(k * n for k, n in [*layers, head])
    found: dict[str, Any] = {
        "threads": threads,
        "load_average": os.getloadavg()[1],  # over five minutes: others at work here spoil what is measured
        "bf16_gflops": matmul_rate([*layers, head], torch.bfloat16),
        "fp32_gflops": matmul_rate([*layers, head], torch.float32),
        "read_gb_per_s": read_rate(),
    }
    for row in rows:
        if row["work"] == "sft":
            found["sft_share_of_bf16"] = row["ours"] * flops / supervised / 1e9 / found["bf16_gflops"]
        if row["work"] == "sample, 1 rows":
            found["one_row_share_of_reading"] = row["ours"] * weights * BYTES / 1e9 / found["read_gb_per_s"]
    return found


def shapes(config: Any) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(in, out) of all linear maps in the layers, and of the head, of a model such as Llama's."""
    width, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_attention_heads * size, config.num_key_value_heads * size
    layer = [(width, query), (width, key), (width, key), (query, width), (width, inner), (width, inner), (inner, width)]
    return layer * config.num_hidden_layers, (width, config.vocab_size)


def matmul_rate(maps: list[tuple[int, int]], dtype: torch.dtype) -> float:
    """GFLOP/s of forward and backward of all the maps, each distinct one timed once."""
    seconds = {}
    for k, n in set(maps):
        x, w, g = (torch.randn(shape).to(dtype) for shape in ((TOKENS, k), (n, k), (TOKENS, n)))
        products = (partial(F.linear, x, w), partial(torch.matmul, g, w), partial(torch.matmul, g.T, x))
        seconds[k, n] = sum(map(best, products))
    return sum(6 * TOKENS * k * n for k, n in maps) / sum(seconds[one] for one in maps) / 1e9


def read_rate() -> float:
    """GB/s of reading half a gigabyte, which no cache holds."""
    x = torch.ones(2**27)
    return x.numel() * 4 / best(x.sum) / 1e9


def best(work: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the fastest run."""
    found = []
    for _ in range(1 + times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found[1:])
