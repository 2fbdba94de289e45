"""A tool that knows what no model can, a check of answers, and conversations to begin with; see boxes.yaml.

Asked for the colour of a box, half of the demonstrations guess and half look it up. Their boxes are not those of the
prompts.
"""

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from chatwright.data.records import Message, Prompt
from chatwright.feedback.environments import Tools

COLOURS = ["red", "green", "blue", "white", "black", "pink", "brown", "grey"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def colour(box: str) -> str:
    """Tell the colour of a box.

    Args:
        box: its two letters.
    """
    return COLOURS[zlib.crc32(box.encode()) % len(COLOURS)]


def right(prompt: Prompt, text: str) -> float:
    """1 where the answer names the colour and no other."""
    return float([word for word in COLOURS if word in text] == [prompt.reference])


def look_up(prompt: Prompt, turns: Sequence[Message]) -> Message | None:
    """`colour` as a tool whose description the policy need not read: it has met its calls in the demonstrations."""
    return TOOLS(prompt, turns)


TOOLS = Tools([colour])


def main(folder: Path, documents: int = 6000, demonstrations: int = 4000) -> None:
    rng = random.Random(0)
    boxes = [a + b for a in LETTERS for b in LETTERS]
    rng.shuffle(boxes)
    texts, talks = [], []
    for number in range(max(documents, demonstrations)):
        box = rng.choice(boxes[:500])
        call = json.dumps({"name": "colour", "arguments": {"box": box}})
        question, call, found = f"What colour is box {box}?", f"<tool_call>{call}</tool_call>", rng.choice(COLOURS)
        texts.append(f"{question} {call} {found} It is {found}.")
        looked = [{"role": "assistant", "content": call}, {"role": "tool", "content": found}] if number % 2 else []
        answer = {"role": "assistant", "content": f"It is {found}."}
        talks.append([{"role": "user", "content": question}, *looked, answer])
    rows = {
        "documents": [{"text": text} for text in texts[:documents]],
        "demonstrations": [{"messages": talk} for talk in talks[:demonstrations]],
        "prompts": [{"question": f"What colour is box {box}?", "answer": colour(box)} for box in boxes[500:]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


if __name__ == "__main__":
    main(Path("runs/boxes/data"))
