"""overoptimization over what bestofn and rl wrote, on tiny real models."""

import json
import math

import pytest
import torch

from chatwright.data.records import Comparison, Message, Prompt
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.evaluation.findings import Findings
from chatwright.stages.base import execute
from chatwright.stages.bestofn import BestOfN
from chatwright.stages.overoptimization import Overoptimization, Proxy
from chatwright.stages.reward import Reward
from chatwright.stages.rl import RL
from chatwright.training.loop import Training


@pytest.fixture
def optimised(language_model, renderer, tmp_path):
    """Two proxies that learned from different numbers of comparisons, each optimised by bestofn and rl."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    language_model.save_pretrained(base)
    renderer.save(base)
    script = tmp_path / "gold.py"
    script.write_text("def length(prompt, text):\n    return len(text) / 10\n")
    prompts, comparisons = tmp_path / "prompts.jsonl", tmp_path / "comparisons.jsonl"
    asked = [(Message.of("user", f"How many {number}?"),) for number in range(12)]
    save([Prompt(messages) for messages in asked], prompts)
    save([Comparison(messages, ("yes", "no"), (0, 1), "ann", "pair") for messages in asked], comparisons)
    training = Training(learning_rate=1e-2, precision="fp32", log_every=2)
    proxies = {}
    for name, data in {"few": 4, "many": 12}.items():
        folders = {kind: tmp_path / f"{kind}_{name}" for kind in ("reward", "bestofn", "rl")}
        shared = {"model": str(base), "prompts": prompts, "reward": str(folders["reward"]), "gold": f"{script}:length"}
        execute(Reward(str(base), comparisons, comparisons, limit=data, batch_size=4), folders["reward"])
        execute(BestOfN(**shared, n=4, max_new_tokens=6), folders["bestofn"])
        execute(
            RL(**shared, iterations=4, rollouts=8, minibatches=2, max_new_tokens=6, training=training), folders["rl"]
        )
        proxies[name] = Proxy(folders["reward"], data, folders["bestofn"], folders["rl"])
    return proxies


def test_rewards_are_counted_from_the_initial_policy_in_its_deviations(optimised, tmp_path):
    out = tmp_path / "out"
    execute(Overoptimization(optimised), out)
    found = Findings.load(out)
    for name, proxy in optimised.items():
        best = json.loads((proxy.bestofn / "scores.json").read_text())
        rounds = [json.loads(line) for line in (proxy.rl / "metrics.jsonl").read_text().splitlines()]
        gold, course = (next(s for s in found.charts[place].series if s.label == name) for place in (0, 2))
        assert len(gold.y) == 3  # the best of 1, 2 and 4
        assert gold.y[0] == 0 and gold.x[0] == pytest.approx(0, abs=1e-4)
        assert gold.y[2] == pytest.approx((best["gold"]["4"] - best["gold"]["1"]) / best["deviation"]["gold"], abs=1e-4)
        assert gold.x[2] == pytest.approx(math.sqrt(best["kl"]["4"]))
        end = found.numbers[name]["rl"]["end"]
        assert end["kl"] == pytest.approx(rounds[-1]["kl"]) and len(course.y) == len(rounds) == 4
        assert end["score"] == pytest.approx((rounds[-1]["gold"] - best["gold"]["1"]) / best["deviation"]["gold"])
        assert end["proxy"] == pytest.approx(
            (rounds[-1]["reward_model"] - best["best_of"]["1"]) / best["deviation"]["score"]
        )
        assert found.numbers[name]["best_of_n"]["peak"]["score"] == max(gold.y)
    titles = [chart.title for chart in found.charts]
    assert "Best of n: coefficients over data" in titles and "Best of n: coefficients over parameters" not in titles
    assert [row[2] for row in found.tables[0].rows] == [4, 4, 12, 12]


def test_what_was_not_measured_is_said(optimised, tmp_path):
    with pytest.raises(ChatwrightError, match="name at least one"):
        Overoptimization({}).run(tmp_path)
    for folder, file in (("rl", "metrics.jsonl"), ("bestofn", "scores.json")):
        path = getattr(optimised["many"], folder) / file
        path.write_text(path.read_text().replace("gold", "silver"))
        with pytest.raises(ChatwrightError, match=f"{folder}_many: no gold in its {file}"):
            Overoptimization(optimised).run(tmp_path)
