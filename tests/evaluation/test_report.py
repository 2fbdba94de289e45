"""The report stage on a small made-up run: its numbers, its page, and what it says when the run is damaged."""

import base64
import html.parser
import json
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import yaml
from safetensors.numpy import save_file

from chatwright.data import store
from chatwright.data.records import Message, Part, Prompt
from chatwright.errors import ChatwrightError
from chatwright.evaluation import figures, report
from chatwright.evaluation.report import Claim
from chatwright.stages.base import execute
from chatwright.stages.report import Report

ARMS = {"pretrained": "vision", "align": "align", "sft": "sft", "ppo": "ppo", "ppo_ptx": "ppo_ptx"}
IMAGE_TASKS = {
    "naming": ("What is this?", "这是什么？", "a red apple", "红苹果", 0.008),
    "counting": ("How many cats are there?", "图里有几只猫？", "three", "三只", 0.2),
    "yes_no": ("Is there a bicycle in the picture?", "图里有自行车吗？", "yes", "有", 0.5),
    "spatial": ("Where is the owl, left or right of the tree?", "猫头鹰在树的左边还是右边？", "left", "左边", 0.25),
    "category": ("What kind of thing is this?", "这是哪一类东西？", "food", "食物", 0.1),
}
TEXT_TASKS = {
    "translation": ("Translate: 你好", "翻译：good morning", "hello", "早上好", 0.0),
    "pretraining": ("The sun rises in the", "太阳从", "east", "东边升起", 0.0),
}
TASKS = IMAGE_TASKS | TEXT_TASKS
SKILL = {"pretrained": 0.05, "align": 0.2, "sft": 0.85, "ppo": 0.88, "ppo_ptx": 0.87}


def made_up_run(run: Path, questions: int = 4) -> Report:
    """A run folder as the stages leave it. Every number is made up: none was ever measured."""
    draw = random.Random(7)
    made = [("tokenizer", "tokenizer", 9.0), ("pretrain", "pretrain", 170.0), ("vision", "vision", 130.0)]
    made += [("align", "align", 95.0), ("sft", "sft", 260.0), ("annotate", "annotate", 61.0)]
    made += [("reward", "reward", 48.0), ("ppo", "rl", 121.0), ("ppo_ptx", "rl", 133.0)]
    for name, kind, seconds in made:
        lines = []
        for step in range(0, 600, 6):
            row = {"step": step, "loss": 0.4 + 4 * math.exp(-step / 120) + draw.gauss(0, 0.06), "tokens": 2400 * step}
            if kind == "rl":
                row |= {"reward": 1.5 - 2 * math.exp(-step / 150) + draw.gauss(0, 0.1), "kl": step / 60}
            lines.append(json.dumps(row))
        finish(run / name, kind, seconds, {})
        if kind not in ("tokenizer", "annotate"):
            (run / name / "metrics.jsonl").write_text("\n".join(lines))
    (run / "ppo_ptx" / "model").mkdir()
    save_file({"weight": np.zeros((30, 70), np.float32), "bias": np.zeros(41, np.float32)},
              run / "ppo_ptx" / "model" / "model.safetensors")  # fmt: skip

    prompts, about = [], []
    for task, (english, chinese, answer, antwort, _) in TASKS.items():
        for number in range(questions):
            language = ("en", "zh")[number % 2]
            question, reference = ((english, answer), (chinese, antwort))[number % 2]
            pictures = [picture(draw)] if task in IMAGE_TASKS else []
            prompts.append(Prompt((Message.of("user", question, *pictures),), reference))
            split = ("compositions", "concepts")[number // 2 % 2] if task == "category" else "compositions"
            about.append({"task": task, "language": language, "split": split, "question": question})
    store.save(prompts, run / "heldout.parquet")

    for arm, stage in ARMS.items():
        folder = run / f"evaluate_{arm}"
        rows = []
        for row, (prompt, facts) in enumerate(zip(prompts, about, strict=True)):
            right = draw.random() < SKILL[arm]
            answer = f"It is {prompt.reference}." if right else draw.choice(["", "the the the", "我不知道", "two dogs"])
            rows.append({"id": f"q{row}", **facts, "reference": prompt.reference, "answer": answer,
                         "correct": right, "row": row})  # fmt: skip
        scores = {}
        for task, (*_, chance) in TASKS.items():
            skill = max(chance, SKILL[arm] - 0.1 * draw.random())
            if task in TEXT_TASKS:
                skill = {"pretrained": 0.3, "align": 0.3, "sft": 0.44, "ppo": 0.37, "ppo_ptx": 0.42}[arm]
            scores[task] = made_up_score(skill, chance) | {
                "by_language": {
                    "en": made_up_score(skill, chance, 200),
                    "zh": made_up_score(0.95 * skill, chance, 200),
                },
                "by_split": {"compositions": made_up_score(skill, chance, 300)},
            }
        scores["category"]["by_split"]["concepts"] = made_up_score(0.6 * SKILL[arm], 0.1, 100)
        if stage in ("ppo", "ppo_ptx"):
            scores["kl"] = 9.5
        finish(folder, "evaluate", 12.5, {"model": str(run / stage / "model")})
        (folder / "scores.json").write_text(json.dumps(scores))
        (folder / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    (run / "annotate" / "agreement.json").write_text(json.dumps({"agreement": 0.728, "target": 0.73, "n": 900}))
    (run / "reward" / "scores.json").write_text(
        json.dumps({"accuracy": 0.794, "low": 0.771, "high": 0.816, "n": 1200, "agreement_ceiling": 0.838})
    )
    liked = [
        {
            "question": draw.choice(["How many cats are there?", "图里有几只猫？"]),
            "response": draw.choice(["There are three cats.", "三只猫。", "cat cat cat", "I like it."]),
            "reward": draw.gauss(0, 2),
            "image": base64.b64encode(Part.of_image(picture(draw)).media or b"").decode(),
        }
        for _ in range(20)
    ]
    (run / "reward" / "examples.jsonl").write_text("\n".join(map(json.dumps, liked)))

    return Report(
        arms={arm: run / f"evaluate_{arm}" for arm in ARMS},
        data=run / "heldout.parquet",
        model=run / "ppo_ptx" / "model",
        reward=run / "reward",
        annotate=run / "annotate",
        subtitle="A made-up run: every number and picture on this page is invented to test the page itself.",
        means={"image": list(IMAGE_TASKS), "tax": list(TEXT_TASKS)},
        win_rates=["ppo_vs_sft", "ppo_ptx_vs_sft"],
        tax_tasks=list(TEXT_TASKS),
        tax_arms=["sft", "ppo", "ppo_ptx"],
        claims=[
            Claim("After fine-tuning, the mean of the picture tasks is at least three times the untuned model's",
                  "arms.sft.image.score", times=3, of="arms.align.image.score"),
            Claim("Counting one to five things in unseen compositions", "arms.sft.counting.by_split.compositions.score",
                  at_least=0.75),
            Claim("Naming trained concepts", "arms.sft.naming.score", at_least=0.99),
            Claim("The category of never-seen concepts, against guessing", "arms.sft.category.by_split.concepts.score",
                  times=3, of="arms.sft.category.by_split.concepts.chance"),
            Claim("Chinese close to English", "arms.sft.image.by_language.zh.score",
                  within=0.1, of="arms.sft.image.by_language.en.score"),
            Claim("Reward model close to what annotator noise allows", "reward_model.accuracy",
                  within=0.05, of="reward_model.agreement_ceiling"),
            Claim("The pretraining mix keeps more than PPO alone", "arms.ppo_ptx.tax.score",
                  above=True, of="arms.ppo.tax.score"),
            Claim("A thing this run did not measure", "arms.sft.flying.score", at_least=0.5),
        ],
    )  # fmt: skip


def finish(folder: Path, kind: str, seconds: float, settings: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump({"stage": kind, "settings": settings}))
    (folder / "DONE").write_text(json.dumps({"seconds": seconds, "files": {}}))
    # Finished one second after the stage before, however fast this file system's clock ticks.
    finish.clock = getattr(finish, "clock", 1_700_000_000) + 1  # type: ignore[attr-defined]
    os.utime(folder / "DONE", (finish.clock, finish.clock))  # type: ignore[attr-defined]


def made_up_score(score: float, chance: float, n: int = 400) -> dict[str, float]:
    half = 1.96 * math.sqrt(score * (1 - score) / n)
    return {"score": score, "low": max(0, score - half), "high": min(1, score + half), "n": n, "chance": chance}


def picture(draw: random.Random) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (64, 64), tuple(draw.randrange(150, 256) for _ in range(3)))
    pen = PIL.ImageDraw.Draw(image)
    for _ in range(draw.randrange(1, 5)):
        x, y, size = draw.randrange(48), draw.randrange(48), draw.randrange(10, 24)
        pen.ellipse((x, y, x + size, y + size), fill=tuple(draw.randrange(200) for _ in range(3)))
    return image
