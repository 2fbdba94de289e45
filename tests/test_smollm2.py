"""The recipe for a real pretrained model, shortened: SmolLM2-135M through sft, annotate, reward, rl and evaluate."""

import json
from pathlib import Path

import yaml

from chatwright.cli import main

RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2.yaml"
SHORTER = {
    "rows": {"demonstrations": 16, "prompts": 12, "heldout": 8, "longest": 100},
    "sft": {"batch_size": 4, "epochs": 0.5},
    "annotate": {"limit": 6, "responses": 3, "max_new_tokens": 12, "heldout": 0.34},
    "reward": {"batch_size": 2, "references": 4},
    "rl": {"iterations": 2, "rollouts": 4, "micro_batch": 4, "max_new_tokens": 8},
    "test_sft": {"max_new_tokens": 8},
    "test_rl": {"max_new_tokens": 8},
}


def test_every_stage_takes_a_real_pretrained_model(tmp_path, capsys):
    recipe = yaml.safe_load(RECIPE.read_text())
    assert set(recipe["stages"]) == set(SHORTER)
    for name, settings in SHORTER.items():
        recipe["stages"][name] |= settings
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(recipe | {"out": str(tmp_path / "run")}, sort_keys=False))
    assert main(["run", str(short)]) == 0, capsys.readouterr().err
    run = tmp_path / "run"
    scores = json.loads((run / "test_rl" / "scores.json").read_text())
    assert scores["instruction"]["n"] == 8
    assert scores["instruction"]["score"] > scores["instruction"]["chance"]
    rounds = [json.loads(line) for line in (run / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line.get("fresh_log_ratio", 0)) < 1e-3 for line in rounds)
    assert json.loads((run / "annotate" / "agreement.json").read_text())["n"] > 0
