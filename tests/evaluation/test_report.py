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
from chatwright.data.records import Comparison, Message, Prompt
from chatwright.errors import ChatwrightError
from chatwright.evaluation import artifacts, claims, figures, harness, report
from chatwright.evaluation.claims import Claim
from chatwright.evaluation.findings import Chart, Findings, Series, Table
from chatwright.stages.base import execute
from chatwright.stages.report import Report

ARMS = {"pretrained": "vision", "align": "align", "sft": "sft", "ppo": "ppo", "ppo_ptx": "ppo_ptx"}
IMAGE_TASKS = {
    "naming": ("What is this?", "这是什么？", "a red apple", "红苹果", 0.008),
    "counting": ("How many cats are there?", "图里有几只猫？", "three", "三只", 0.2),
    "yes_no": ("Is there a bicycle in the picture?", "图里有自行车吗？", "yes", "有", 0.5),
    "relation": ("Where is the owl, left or right of the tree?", "猫头鹰在树的左边还是右边？", "left", "左边", 0.25),
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
            row = {
                "stage": kind,
                "step": step,
                "loss": 0.4 + 4 * math.exp(-step / 120) + draw.gauss(0, 0.06),
                "tokens": 2400 * step,
            }
            if kind == "rl":
                row |= {
                    "score": 2 - step / 900,
                    "reward": 1.5 - 2 * math.exp(-step / 150) + draw.gauss(0, 0.1),
                    "kl": step / 60,
                }
            lines.append(json.dumps(row))
        finish(run / name, kind, seconds, {})
        if kind not in ("tokenizer", "annotate"):
            (run / name / "metrics.jsonl").write_text("\n".join(lines))
    (run / "ppo_ptx" / "model").mkdir()
    (run / "ppo_ptx" / "model" / "config.json").write_text("{}")
    save_file({"weight": np.zeros((30, 70), np.float32), "bias": np.zeros(41, np.float32)},
              run / "ppo_ptx" / "model" / "model.safetensors")  # fmt: skip

    prompts, about = [], []
    for task, (english, chinese, answer, antwort, _) in TASKS.items():
        for number in range(questions):
            language = ("en", "zh")[number % 2]
            question, reference = ((english, answer), (chinese, antwort))[number % 2]
            pictures = [picture(draw)] if task in IMAGE_TASKS else []
            prompts.append(Prompt((Message.of("user", question, *pictures),), reference))
            split = ("composition", "concept")[number // 2 % 2] if task == "category" else "composition"
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
                "by_split": {"composition": made_up_score(skill, chance, 300)},
            }
        scores["category"]["by_split"]["concept"] = made_up_score(0.6 * SKILL[arm], 0.1, 100)
        finish(folder, "evaluate", 12.5, {"model": str(run / stage / "model")})
        (folder / "scores.json").write_text(json.dumps(scores))
        (folder / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    (run / "annotate" / "agreement.json").write_text(json.dumps({"agreement": 0.728, "target": 0.73, "n": 900}))
    (run / "reward" / "scores.json").write_text(
        json.dumps({"accuracy": 0.794, "low": 0.771, "high": 0.816, "n": 1200, "agreement_ceiling": 0.838})
    )
    comparisons, liked = [], []
    for row in range(20):
        question = draw.choice(["How many cats are there?", "图里有几只猫？"])
        responses = draw.sample(["There are three cats.", "三只猫。", "cat cat cat", "I like it."], 2)
        messages = (Message.of("user", question, picture(draw)),)
        meta = {"answers": {"bare": "three"}}
        comparisons.append(Comparison(messages, tuple(responses), (0, 1), "somebody", "simulated", meta))
        liked.append(
            {"end": ("best", "worst")[row // 10], "row": row, "response": responses[row // 10], "score": 3 - row / 3}
        )
    store.save(comparisons, run / "annotate" / "comparisons_heldout.parquet")
    (run / "reward" / "examples.jsonl").write_text("\n".join(map(json.dumps, liked)))
    return stage_about(run)


def stage_about(run: Path) -> Report:
    """The report stage as a recipe sets it for the made-up run."""
    return Report(
        arms={arm: run / f"evaluate_{arm}" for arm in ARMS},
        data=run / "heldout.parquet",
        model=str(run / "ppo_ptx"),
        reward=run / "reward",
        comparisons=run / "annotate" / "comparisons_heldout.parquet",
        annotate=run / "annotate",
        subtitle="A made-up run: every number and picture on this page is invented to test the page itself.",
        means={"image": list(IMAGE_TASKS), "tax": list(TEXT_TASKS)},
        win_rates=["ppo_vs_sft", "ppo_ptx_vs_sft"],
        tax_tasks=list(TEXT_TASKS),
        tax_arms=["sft", "ppo", "ppo_ptx"],
        claims=[
            Claim("After fine-tuning, the mean of the picture tasks is at least three times the untuned model's",
                  "arms.sft.image.score", times=3, of="arms.align.image.score"),
            Claim("Counting one to five things in unseen compositions", "arms.sft.counting.by_split.composition.score",
                  at_least=0.75),
            Claim("Naming trained concepts", "arms.sft.naming.score", at_least=0.99),
            Claim("The category of never-seen concepts, against guessing", "arms.sft.category.by_split.concept.score",
                  times=3, of="arms.sft.category.by_split.concept.chance"),
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


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A made-up run with its report; read only."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    assert execute(made_up_run(run), run / "report")
    return run


def test_report_json_has_the_promised_keys(made):
    numbers = json.loads((made / "report.json").read_text())
    assert set(numbers) == {
        "arms", "win_rate", "reward_model", "annotators", "kl", "seconds", "parameters", "tokens", "claims",
    }  # fmt: skip
    assert list(numbers["arms"]) == list(ARMS)
    for arm in numbers["arms"].values():
        assert set(arm) == {*TASKS, "image", "tax"}
        for score in arm.values():
            assert {"score", "low", "high", "n", "chance"} <= set(score)
            assert set(score["by_language"]) == {"en", "zh"}
    assert set(numbers["win_rate"]) == {"ppo_vs_sft", "ppo_ptx_vs_sft"}
    for rate in numbers["win_rate"].values():
        assert {"score", "low", "high", "n", "ties"} <= set(rate)
    assert {"accuracy", "agreement_ceiling"} <= set(numbers["reward_model"])
    assert numbers["annotators"]["agreement"] == 0.728
    # Steps 540 to 594 are the last tenth; the made-up KL is a sixtieth of the step.
    assert numbers["kl"] == {"ppo": pytest.approx(567 / 60), "ppo_ptx": pytest.approx(567 / 60)}
    assert numbers["seconds"]["sft"] == 260.0 and len(numbers["seconds"]) == 14
    assert numbers["parameters"] == 30 * 70 + 41
    # Six stages trained on tokens up to step 594; the vision stage counts pictures.
    assert numbers["tokens"] == 6 * 2400 * 594


def test_scores_as_evaluate_adds_them_up_are_read(tmp_path):
    rows = [
        {"task": "naming", "language": language, "split": split, "correct": language == "en", "chance": 0.25}
        for language in ("en", "zh")
        for split in ("composition", "concept")
    ]
    scores = harness.tally(rows)
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    read = claims.with_means(artifacts.read_scores(tmp_path), {"image": ["naming", "unknown"]})
    assert read["image"]["score"] == read["naming"]["score"] == 0.5
    assert read["image"]["by_language"]["zh"]["score"] == 0 and read["image"]["by_split"]["concept"]["n"] == 2


def test_a_finished_report_is_not_made_again(made):
    assert not execute(stage_about(made), made / "report")


def test_claims_are_judged_and_misses_stay(made):
    claims = json.loads((made / "report.json").read_text())["claims"]
    assert [claim["reached"] for claim in claims] == [True, True, False, True, True, True, True, None]
    page = (made / "report.html").read_text()
    assert page.count("✗ missed") == 1 and page.count("? not measured") == 1 and page.count("✓ reached") == 6
    assert "6 of 8" in page


class Elements(html.parser.HTMLParser):
    """What a page loads, its ids, its headings and what its pictures say."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [values[key] for key in ("src", "href", "xlink:href", "data", "poster") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.images += [values] if tag == "img" else []
        assert tag not in ("script", "link", "iframe", "object", "embed")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_the_page_is_whole_and_loads_nothing(made):
    page = (made / "report.html").read_text()
    elements = Elements(page)
    assert elements.open == []
    assert all(target.startswith(("#", "data:image/")) for target in elements.loads)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(elements.ids) == len(set(elements.ids))
    inside = {target[1:] for target in elements.loads if target.startswith("#")}
    assert inside <= set(elements.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(elements.ids)
    assert elements.headings[0] == 1
    assert all(level - before <= 1 for before, level in zip(elements.headings, elements.headings[1:], strict=False))
    # Five tasks of four questions, and twelve answers of the reward model.
    assert len(elements.images) == 20 + 12 and all(image["alt"] for image in elements.images)
    assert not re.search("#0[0-9a-f]0[0-9a-f]0[0-9a-f]", page)  # no placeholder colour is left


def test_pictures_are_those_of_the_questions(made):
    page = (made / "report.html").read_text()
    for prompt in store.load(made / "heldout.parquet", Prompt):
        picture = artifacts.picture_of(prompt.messages)
        if picture is not None:
            encoded = base64.b64encode(picture.media).decode()
            _, found, after = page.partition(encoded)
            assert found and prompt.messages[0].text in after.split("</li>")[0]


def test_questions_are_shown_in_turn_and_without_a_look_at_answers(tmp_path):
    stage = made_up_run(tmp_path / "demo", questions=6)
    prompts = store.load(stage.data, Prompt)
    answers = {arm: artifacts.read_answers(folder, len(prompts)) for arm, folder in stage.arms.items()}
    shown = report.choose_pictures(answers, prompts, 12)
    assert len(shown) == 12
    cells = {(row["task"], row["split"], row["language"]) for row, _, _ in shown}
    assert cells == {
        (row["task"], row["split"], row["language"]) for row in answers["sft"] if row["task"] in IMAGE_TASKS
    }
    for rows in answers.values():
        for row in rows:
            row["correct"], row["answer"] = not row["correct"], "?"
    again = report.choose_pictures(answers, prompts, 12)
    assert [row["id"] for row, _, _ in again] == [row["id"] for row, _, _ in shown]


def test_what_a_model_says_cannot_break_the_page(tmp_path):
    stage = made_up_run(tmp_path / "demo")
    path = stage.arms["sft"] / "answers.jsonl"
    rows = artifacts.read_lines(path)
    for row in rows:
        row["answer"] = "</li><script>alert(1)</script><img src=http://example.com/x.png>"
    path.write_text("\n".join(map(json.dumps, rows)))
    stage.run(tmp_path / "demo" / "report")
    elements = Elements((tmp_path / "demo" / "report.html").read_text())
    assert all(target.startswith(("#", "data:image/")) for target in elements.loads)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("evaluate_sft/scores.json", None, "missing; run the stage"),
        ("evaluate_sft/scores.json", '{"naming": {"score": 0.5', "cannot be read"),
        ("evaluate_sft/scores.json", "[]", "not a JSON object"),
        ("evaluate_sft/scores.json", '{"naming": {"score": 0.5, "low": 0.4, "high": 0.6, "n": 9}}', "naming.chance"),
        ("evaluate_sft/scores.json", '{"naming": 0.5}', "'naming' is not an object"),
        ("evaluate_ppo/answers.jsonl", None, "missing; run the stage"),
        ("evaluate_ppo/answers.jsonl", "{}\n", "line 1 has no text 'task'"),
        ("evaluate_ppo/answers.jsonl", "{\n", "line 1 is not JSON"),
        ("reward/scores.json", '{"accuracy": 0.7}', "'low' is missing"),
        (
            "reward/examples.jsonl",
            '{"end": "best", "row": 0, "response": "!", "score": "high"}',
            "line 1.score' is not a",
        ),
        ("reward/examples.jsonl", '{"end": "best", "row": 20, "response": "!", "score": 1}', "is about row 20 of data"),
        ("reward/examples.jsonl", '{"end": "top", "row": 1, "response": "!", "score": 1}', "not 'best' or 'worst'"),
        ("annotate/agreement.json", '{"agreement": NaN}', "'agreement' is not a number"),
        ("sft/DONE", "", "cannot be read"),
        ("sft/metrics.jsonl", '{"step": 1', "line 1 is not JSON"),
        ("ppo_ptx/model/model.safetensors", "x", "damaged header"),
    ],
)
def test_a_damaged_run_is_one_line_that_names_the_file(tmp_path, file, text, says):
    stage = made_up_run(tmp_path / "demo")
    path = tmp_path / "demo" / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ChatwrightError) as error:
        stage.run(tmp_path / "demo" / "report")
    assert str(path) in str(error.value) and says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "demo" / "report.html").exists()


def test_answers_to_other_data_are_refused(tmp_path):
    stage = made_up_run(tmp_path / "demo")
    prompts = list(store.load(stage.data, Prompt))
    store.save(prompts[:5], stage.data)
    with pytest.raises(ChatwrightError, match=r"is about row 5 of data with 5 rows; name the data"):
        stage.run(tmp_path / "demo" / "report")


def test_a_missing_model_and_an_unknown_pair_are_named(tmp_path):
    stage = made_up_run(tmp_path / "demo")
    stage.win_rates = ["ppo_vs_gpt"]
    with pytest.raises(ChatwrightError, match="'ppo_vs_gpt' is not <arm>_vs_<arm>"):
        stage.run(tmp_path / "demo" / "report")
    stage.win_rates, stage.model = [], str(tmp_path / "nowhere")
    with pytest.raises(ChatwrightError, match="nowhere: no such folder; name a checkpoint"):
        stage.run(tmp_path / "demo" / "report")


FOUND = Findings(
    "Which size wins",
    "Made up: <b>nothing</b> here was measured.",
    {"small": {"score": 0.6, "low": 0.55, "high": 0.65, "n": 300}},
    [Chart("Preferred", "Larger is better.", "parameters", "win rate",
           [Series("sft", [1e5, 1e6], [0.4, 0.5], [0.3, 0.45], [0.5, 0.55]),
            Series("fit", [1e5, 1e6], [0.4, 0.5], style="curve", colour=0)], log_x=True)],
    [Table("Answers", "By a fixed rule.", ["prompt", "length"], [["<script>", 0.12345], ["你好", 12345]])],
)  # fmt: skip


def test_findings_of_measuring_stages_are_numbers_charts_and_tables(tmp_path):
    finish(tmp_path / "sizes", "compare", 4.0, {})
    FOUND.save(tmp_path / "sizes")
    assert Findings.load(tmp_path / "sizes").numbers == FOUND.numbers
    claim = Claim("The small one is preferred", "by_size.small.score", at_least=0.5)
    Report(findings={"by_size": tmp_path / "sizes"}, claims=[claim]).run(tmp_path / "report")
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["by_size"] == FOUND.numbers and numbers["claims"][0]["reached"]
    page = (tmp_path / "report.html").read_text()
    assert "Which size wins" in page and "&lt;b&gt;nothing" in page and "&lt;script&gt;" in page
    assert "<td>0.123</td>" in page and "<td>12,345</td>" in page and ">parameters</text>" in page
    assert "The arms, task by task" not in page


def test_findings_that_cannot_be_shown_are_named(tmp_path):
    FOUND.save(tmp_path / "sizes")
    with pytest.raises(ChatwrightError, match="'kl' is a name that the report uses itself"):
        Report(findings={"kl": tmp_path / "sizes"}).run(tmp_path / "report")
    (tmp_path / "sizes" / "findings.json").write_text('{"title": "half')
    with pytest.raises(ChatwrightError, match=r"findings\.json: cannot be read"):
        Report(findings={"by_size": tmp_path / "sizes"}).run(tmp_path / "report")
    with pytest.raises(ChatwrightError, match="name them: data="):
        Report(arms={"sft": tmp_path / "sizes"}).run(tmp_path / "report")


def test_a_reward_model_of_steps_is_told_as_such(tmp_path):
    stage = made_up_run(tmp_path / "demo")
    steps = {"accuracy": 0.8, "low": 0.7, "high": 0.9, "n": 50, "of": "steps"}
    (tmp_path / "demo" / "reward" / "scores.json").write_text(json.dumps(steps))
    stage.run(tmp_path / "demo" / "report")
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "labels <strong>80.0%</strong> of the steps" in page and "of the pairs as" not in page


def test_a_claim_needs_one_target():
    for claim in (
        Claim("nothing", "tokens"),
        Claim("two", "tokens", at_least=1, times=2, of="tokens"),
        Claim("of what", "tokens", times=2),
        Claim("of two", "tokens", at_least=2, of="parameters"),
    ):
        with pytest.raises(ChatwrightError, match="give either at_least, or of"):
            claims.judge(claim, {"tokens": 3})


def test_claims_compare_as_they_say():
    numbers = {"a": {"score": 0.6, "low": 0.5, "high": 0.7, "n": 10, "chance": 0.2}, "b": {"score": 0.7}}
    three = claims.judge(Claim("3x", "a.score", times=3, of="a.chance"), numbers)
    assert three.target == pytest.approx(0.6) and three.close
    assert claims.judge(Claim("", "a.score", within=0.11, of="b.score"), numbers).reached is True
    assert claims.judge(Claim("", "a.score", within=0.09, of="b.score"), numbers).reached is False
    assert claims.judge(Claim("", "b.score", above=True, of="b.score"), numbers).reached is False
    assert claims.judge(Claim("", "b.score", at_least=0.7), numbers).reached is True
    assert claims.judge(Claim("", "b.score", times=1, of="c.score"), numbers).reached is None


def test_mean_of_scores_weighs_tasks_alike_and_adds_variances():
    one = {"score": 0.4, "low": 0.1, "high": 0.7, "n": 10, "chance": 0.0, "by_split": {"old": made_up_score(0.4, 0)}}
    two = {"score": 0.8, "low": 0.4, "high": 1.0, "n": 90, "chance": 0.5}
    mean = claims.mean_of([one, two])
    assert mean["score"] == pytest.approx(0.6) and mean["chance"] == 0.25 and mean["n"] == 100
    assert mean["low"] == pytest.approx(0.6 - math.hypot(0.3, 0.4) / 2)
    assert mean["high"] == pytest.approx(0.6 + math.hypot(0.3, 0.2) / 2)
    assert mean["by_split"]["old"]["score"] == pytest.approx(0.4)


def test_tokens_of_a_stage_that_trains_twice_add_up(tmp_path):
    rows = [{"stage": "a", "tokens": 5}, {"stage": "a", "tokens": 9}, {"stage": "b", "tokens": 4}]
    rows.append({"stage": "contrastive", "tokens": 32})
    ran = report.Ran("align", tmp_path, "align", 1.0, {}, rows)
    assert (ran.tokens, ran.pictures) == (13, 32)


def test_numbers_as_people_read_them():
    assert [report.duration(s) for s in (4.26, 59.4, 187, 3840)] == ["4.3 s", "59 s", "3 min 07 s", "1 h 04 min"]
    assert [report.amount(n) for n in (950, 2141, 41_000, 2_941_000, 1.2e10)] == [
        "950",
        "2,141",
        "41 k",
        "2.94 M",
        "12 G",
    ]
    assert claims.percent(0.8742) == "87.4%" and report.span({"low": 0.841, "high": 0.902}) == "84.1–90.2"


def test_running_mean_keeps_ends_and_length():
    assert figures.running_mean([3.0, 5.0, 10.0], 1) == [4.0, 6.0, 7.5]
    assert figures.running_mean([1.0, 2.0], 50) == [1.5, 1.5]


def test_curves_end_where_their_values_end():
    """The drawn path follows the numbers: a rising series ends above (smaller y) where it began."""
    svg = figures.curves("up", [figures.Curve("loss", [0, 1, 2], [0.0, 1.0, 2.0], 2)], "rising")
    (path,) = re.findall(r'<path d="([^"]*)" clip-path[^>]*var\(--arm-2\)', svg)
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert len(points) == 3
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2)  # three values are shown as they are
    assert points[0][0] < points[1][0] < points[2][0] and points[0][1] > points[2][1]


def test_the_path_names_every_stage_once_and_stays_inside_its_frame():
    boxes = [figures.Box(f"stage{n}", "works", "1 s", 0.1, "arm", n if n % 2 else None) for n in range(7)]
    for columns in (2, 5):
        svg = figures.path(boxes, columns, "the path")
        wide, high = map(float, re.search(r'viewBox="-1 -1 (\d+) (\d+)"', svg).groups())
        corners = [tuple(map(float, place)) for place in re.findall(r"translate\((\d+) (\d+)\)", svg)]
        assert len(set(corners)) == 7
        assert all(x + 178 <= wide and y + 92 <= high for x, y in corners)
        assert all(svg.count(f">{box.name}<") == 1 for box in boxes)
