"""`generate` and `generate_batch` of transformers, in bf16 with SDPA; every answer has all its tokens."""

from argparse import Namespace
from collections.abc import Callable

import pieces
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig


def generate(given: Namespace) -> Callable[[], int]:
    tokenizer, model, prompts, config = _prepared(given)
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

    def piece() -> int:
        answers = model.generate(**inputs, generation_config=config)
        return answers[:, inputs["input_ids"].shape[1] :].numel()

    return piece


def generate_batch(given: Namespace) -> Callable[[], int]:
    _, model, prompts, config = _prepared(given)

    # By default it takes most of the machine's memory for its cache, whatever the prompts need.
    room = ContinuousBatchingConfig(num_blocks=2 * given.rows, max_batch_tokens=1024)

    def piece() -> int:
        answers = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=room)
        return sum(len(answer.generated_tokens) for answer in answers.values())

    return piece


def _prepared(given: Namespace) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16).eval()
    prompts = [row["tokens"] for row in pieces.rows(given.data / "prompts.jsonl")[: given.rows]]
    config = GenerationConfig(
        max_new_tokens=pieces.NEW_TOKENS, do_sample=True, top_k=0, top_p=1.0, pad_token_id=tokenizer.pad_token_id
    )
    model.generation_config = config  # its own has a token that ends an answer
    return tokenizer, model, prompts, config


if __name__ == "__main__":
    given = pieces.arguments()
    torch.set_num_threads(given.threads)
    piece = {"generate": generate, "generate_batch": generate_batch}[given.work](given)
    talk = pieces.Pieces(f"transformers {transformers.__version__}")
    while True:
        talk.begin()
        talk.end(piece())
