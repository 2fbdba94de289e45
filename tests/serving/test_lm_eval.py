"""The server under lm-evaluation-harness: the scores are those that the harness finds on the checkpoint itself."""

import json
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tests.serving.clients import Running

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling

QUESTIONS = [
    {"question": "How many dogs are there? There are", "choices": [" three", " a red apple", "狗"], "answer": 0},
    {"question": "Translate into Chinese: dog.", "choices": [" 狗", " 有一个红苹果", " pear"], "answer": 0},
    {"question": "图片里有什么？", "choices": ["There is a dog.", "有一个红苹果。"], "answer": 1},
    {
        "question": "What is in the picture?",
        "choices": [" a pear", " an apple and a green pear", " 一只狗"],
        "answer": 1,
    },
    {"question": "dog", "choices": ["s", ". ", " are"], "answer": 2},
    {"question": "A green", "choices": [" pear", " dog", " apple", "苹果"], "answer": 0},
]
CHOICE = {
    "task": "choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITING = {
    "task": "writing",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["e", "一"], "max_gen_toks": 12, "temperature": 0},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture
def running(start, language_model, renderer) -> Running:
    return start(Engine(language_model, Renderer(renderer.tokenizer), batch_size=4))


@pytest.fixture
def evaluate(running, tmp_path, monkeypatch):
    """What the harness finds with one of its clients: the results, and the answers question by question."""
    monkeypatch.setenv("OPENAI_API_KEY", running.key)
    checkpoint, tasks, questions = tmp_path / "model", tmp_path / "tasks", tmp_path / "questions.jsonl"
    running.engine.model.save_pretrained(checkpoint)
    running.engine.renderer.save(checkpoint)
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    tasks.mkdir()
    files = {"data_files": {"test": str(questions)}, "cache_dir": str(tmp_path / "cache")}
    for task in (CHOICE, WRITING):
        source = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "metadata": {"version": 1}}
        (tasks / f"{task['task']}.yaml").write_text(yaml.safe_dump({**source, **task}))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def evaluated(client: str, task: str, path: str = "", **options: Any) -> tuple[dict[str, float], list[Any]]:
        arguments = {"pretrained": str(checkpoint), "dtype": "float32"}
        if path:
            arguments = {"model": "tiny", "base_url": f"{running.url}{path}", "tokenizer": str(checkpoint)}
        found = simple_evaluate(
            client, {**arguments, **options}, tasks=[task], task_manager=manager, batch_size=2, device="cpu",
            bootstrap_iters=0, apply_chat_template=task == "writing",
        )  # fmt: skip
        return found["results"][task], [sample["resps"] for sample in found["samples"][task]]

    return evaluated


def test_log_likelihoods_of_the_server_are_those_of_the_checkpoint(evaluate):
    scores, answers = evaluate("hf", "choice")
    served_scores, served_answers = evaluate("local-completions", "choice", "/v1/completions")
    for metric in ("acc,none", "acc_norm,none"):
        assert served_scores[metric] == scores[metric]
    assert 0 < scores["acc,none"] < 1
    for found, served in zip(answers, served_answers, strict=True):
        for ((likelihood, greedy),), ((served_likelihood, served_greedy),) in zip(found, served, strict=True):
            assert served_likelihood == pytest.approx(likelihood, abs=1e-4)
            assert served_greedy == greedy


def test_a_generation_task_gets_what_the_engine_says(evaluate, running):
    _, answers = evaluate("local-chat-completions", "writing", "/v1/chat/completions")
    sampling = Sampling(12, 0, stop=("e", "一"))
    alone = running.engine.generate([[Message.of("user", row["question"])] for row in QUESTIONS], sampling)
    assert answers == [[[completion.text]] for (completion,) in alone]
    assert len({text for ((text,),) in answers}) > 1
