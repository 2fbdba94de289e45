"""What 8-bit weights bring and cost: python benchmarks/int8.py

Tokens/s with weights of bf16 and of 8 bits, turn and turn about, of SmolLM2-135M-Instruct and of a wider model drawn at
random; and how well the former then predicts the answers of real conversations (alpaca-gpt4): nats a token, and how
often its first choice is that of fp32.
"""

import statistics
import time
from collections import deque
from pathlib import Path

import pieces
import torch
from bench import ENVIRONMENTS
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import data
from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.generation import weights
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.generation.weights import prepared
from chatwright.models.load import load_model
from chatwright.models.outputs import answer_logits

TURNS = 3


def speeds(model: PreTrainedModel, renderer: Renderer, prompts: list[Rendered]) -> tuple[float, float]:
    """Medians of tokens/s with bf16 and with 8 bits, once weights are laid out and prompts read."""
    engines = [Engine(model, renderer, len(prompts), int8=int8) for int8 in (False, True)]
    rates: list[list[float]] = [[], []]
    for turn in range(1 + TURNS):
        for engine, found in zip(engines, rates, strict=True):
            with engine.decoder() as decoder:
                decoder.admit(deque(engine.request(prompt, Sampling(pieces.NEW_TOKENS)) for prompt in prompts))
                begun = time.perf_counter()
                while decoder.rows:
                    decoder.step()
            if turn:
                found.append(len(prompts) * pieces.NEW_TOKENS / (time.perf_counter() - begun))
    return statistics.median(rates[0]), statistics.median(rates[1])


@torch.inference_mode()
def quality(folder: Path, renderer: Renderer) -> None:
    rows = [
        renderer.demonstration([Message.of(one["role"], one["content"]) for one in row["prompt"] + row["completion"]])
        for row in pieces.rows(folder / "conversations.jsonl")
    ]
    batches = [renderer.collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]
    targets = torch.cat([batch["input_ids"][:, 1:][batch["loss_mask"][:, 1:]] for batch in batches])
    whole, half = load_model(folder / "model"), load_model(folder / "model", torch.bfloat16)
    exact = torch.cat([answer_logits(whole, batch) for batch in batches])
    print(f"{len(targets):,} tokens of answers")
    print("| weights | nats a token | first choice as with fp32 |")
    print("|---|---|---|")
    for name in ("fp32", "bf16", "int8", "int8 in all layers"):
        logits = exact
        if name != "fp32":
            weights.WORTH = 0 if "all" in name else weights.WORTH
            with prepared(half, 64, "int8" in name):
                logits = torch.cat([answer_logits(half, batch).float() for batch in batches])
        loss = torch.nn.functional.cross_entropy(logits, targets).item()
        print(f"| {name} | {loss:.4f} | {(logits.argmax(-1) == exact.argmax(-1)).float().mean():.1%} |", flush=True)


def main() -> None:
    folder = data.main(ENVIRONMENTS / "data", data.SMOLLM2)
    renderer = Renderer.load(folder / "model")
    prompts = [Rendered(row["tokens"], [False] * len(row["tokens"])) for row in pieces.rows(folder / "prompts.jsonl")]
    small = load_model(folder / "model", torch.bfloat16)
    wide = LlamaConfig(
        vocab_size=49152, hidden_size=2048, intermediate_size=8192, num_hidden_layers=8, num_attention_heads=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    large = AutoModelForCausalLM.from_config(wide, dtype=torch.bfloat16)
    stop_ids, renderer.stop_ids = renderer.stop_ids, set()  # nothing ends an answer
    print("| model | rows | bf16, tokens/s | int8, tokens/s |")
    print("|---|---|---|---|")
    for name, model in (("SmolLM2-135M", small), ("2,048 wide, 8 layers", large)):
        for rows in (1, 4, 16):
            before, after = speeds(model, renderer, prompts[:rows])
            print(f"| {name} | {rows} | {before:.1f} | {after:.1f} |", flush=True)
    renderer.stop_ids = stop_ids
    quality(folder, renderer)


if __name__ == "__main__":
    main()
