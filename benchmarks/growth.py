"""How our cost grows: tokens/s over rows, length, samples of a prompt, size of the model, and processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pieces
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.attention import use_packing
from chatwright.models.load import load_model
from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.training import distributed
from chatwright.training.distributed import Spread

SIZES = [(128, 4), (256, 8), (512, 16), (768, 24)]  # width and layers
ROWS, LENGTH = 8, 128


def measured(folder: Path, threads: int) -> list[dict[str, Any]]:
    """Rows ``{what, of, x, y}``: y is tokens/s at x, of decoding (64 an answer) or training (all supervised)."""
    torch.set_num_threads(threads)
    renderer = Renderer.load(folder / "model")
    renderer.stop_ids = set()
    prompts = [row["tokens"] for row in pieces.rows(folder / "prompts.jsonl")]
    model = load_model(folder / "model", torch.bfloat16)

    def decoding(rows: int, n: int, prompt: list[int] | None = None) -> float:
        asked = [Rendered(tokens, [False] * len(tokens)) for tokens in ([prompt] if prompt else prompts[:rows])]
        engine = Engine(model, renderer, rows * n)
        return rate(lambda: engine.generate(asked, Sampling(pieces.NEW_TOKENS), n), rows * n * pieces.NEW_TOKENS)

    def add(of: str, what: str, x: float, y: float) -> None:
        found.append({"of": of, "what": what, "x": x, "y": y})

    found: list[dict[str, Any]] = []
    for rows in (1, 2, 4, 8, 16, 32, 64):
        add("decoding", "rows", rows, decoding(rows, 1))
    long = (prompts[0] * 64)[:384]
    for samples in (1, 2, 4, 8, 16, 32):
        add("decoding", "samples of a prompt of 384 tokens", samples, decoding(1, samples, long))
    trained = load_model(folder / "model")
    for length in (64, 128, 256, 512):
        add("training", "length", length, training(trained, renderer, 1024 // length, length))
    for rows in (1, 2, 4, 8, 16):
        add("training", "rows of 128", rows, training(trained, renderer, rows, 128))
    for width, layers in SIZES:
        made = language_model(width, layers)
        size = sum(parameter.numel() for parameter in made.parameters())
        add("training", "millions of parameters", size / 1e6, training(made, renderer, ROWS, LENGTH))
    for count in (1, 2, 4):
        add("training", "processes of one thread", count, by_processes(count, folder))
    return found


def language_model(width: int, layers: int) -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=8192, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, head_dim=64,
        num_key_value_heads=width // 64, intermediate_size=3 * width, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    use_packing(model)
    return model


def training(model: PreTrainedModel, renderer: Renderer, rows: int, length: int) -> float:
    """Tokens/s, forward and backward; of all processes, each of which has so many rows."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 8000, (rows, length), generator=random).tolist()
    batch = renderer.collate([Rendered(row, [True] * length) for row in ids])
    spread = Spread(CausalLanguageModel(model, renderer), torch.device("cpu"))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=distributed.size() == 1):
            loss = spread(batch).total
        loss.backward()
        spread.zero_grad(set_to_none=True)
        distributed.barrier()

    return rate(step, rows * length * distributed.size())


def by_processes(count: int, folder: Path) -> float:
    """Tokens/s of a model of 59 million parameters, trained by so many processes that share the rows of a step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), __file__, str(folder)]
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return float(json.loads(done.stdout)["tokens/s"])


def rate(work: Callable[[], Any], amount: float) -> float:
    """Of the second run."""
    work()
    begun = time.perf_counter()
    work()
    return amount / (time.perf_counter() - begun)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.world():
        rows = ROWS // distributed.size()
        speed = training(language_model(*SIZES[2]), Renderer.load(Path(sys.argv[1]) / "model"), rows, LENGTH)
        if distributed.first():
            print(json.dumps({"tokens/s": speed}))
