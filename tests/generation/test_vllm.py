import copy
import json
import threading
import time

import numpy as np
import pytest
import torch
from tests.generation.servers import LONGEST, Speaker
from tests.pipeline import course
from tests.serving.clients import serve

from chatwright.data.records import Demonstration, Message, Prompt
from chatwright.data.render import Renderer
from chatwright.data.rendered import Rendered
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.generation.backends import vllm
from chatwright.generation.backends.vllm import VLLM
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.adapters import Adapter
from chatwright.models.heads import RewardModel
from chatwright.models.outputs import token_logprobs
from chatwright.stages.annotate import Annotate
from chatwright.stages.base import execute
from chatwright.stages.bestofn import BestOfN
from chatwright.stages.compare import Compare
from chatwright.stages.rl import RL


@pytest.fixture
def speaking(monkeypatch):
    """Starts a server; gives its address and what it speaks with."""
    monkeypatch.setattr(vllm, "PAUSES", (0.0, 0.0, 0.0))
    stops = []

    def start(*args, **settings):
        speaker = Speaker(*args, **settings)
        url, stop = serve(speaker.app)
        stops.append(stop)
        return url, speaker

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def words(conversations):
    return [conversations[0], conversations[3]]


def other(model):
    """The same model with other weights."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(0.7)
    return changed


def same(theirs, ours):
    """Whether two answers are one but for the rounding of what was computed in other batches."""
    logprobs = [
        [*one.logprobs, *(logprob for pairs in one.alternatives for _, logprob in pairs)] for one in (theirs, ours)
    ]
    tokens = [(one.tokens, [[token for token, _ in pairs] for pairs in one.alternatives]) for one in (theirs, ours)]
    return (
        tokens[0] == tokens[1]
        and (theirs.text, theirs.finish_reason) == (ours.text, ours.finish_reason)
        and torch.tensor(logprobs).diff(dim=0).abs().max() < 1e-4
    )


def all_same(theirs, ours):
    return all(same(*pair) for both in zip(theirs, ours, strict=True) for pair in zip(*both, strict=True))


def of(renderer, row, completion, model, **how):
    """What the model itself says of an answer's tokens."""
    batch = renderer.collate([renderer.answered(row, completion.tokens)])
    with torch.no_grad():
        logprobs, _ = token_logprobs(model, batch, **how)
    return logprobs[0, len(row) :]


def test_greedy_answers_are_those_of_the_engine(speaking, assistant, renderer, words):
    url, _ = speaking(assistant, renderer)
    for sampling in (Sampling(12, 0, alternatives=3), Sampling(12, 0, top_k=2, alternatives=3)):
        told = []
        theirs = VLLM(url, renderer).generate(words, sampling, n=2, progress=told.append)
        assert all_same(theirs, Engine(assistant, renderer).generate(words, sampling, n=2))
        assert told in ([1, 2], [2])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_are_of_what_was_sampled_from(speaking, assistant, renderer, words, temperature):
    url, speaker = speaking(assistant, renderer)
    answers = VLLM(url, renderer).generate(words, Sampling(16, temperature), n=8)
    for prompt, several in zip(words, answers, strict=True):
        assert len({tuple(answer.tokens) for answer in several}) > 1
        for answer in several:
            row = renderer.prompt(prompt)
            known = of(renderer, row, answer, assistant, temperature=temperature, excluded=renderer.unsaid)
            assert torch.tensor(answer.logprobs).sub(known).abs().max() < 1e-4
            assert not renderer.unsaid & set(answer.tokens)
            assert answer.text == renderer.decode([token for token in answer.tokens if token not in renderer.stop_ids])
    seeds = {body["seed"] for body in speaker.asked if "allowed_token_ids" not in body}
    assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)


def test_samples_follow_from_seed_prompt_and_number(speaking, language_model, renderer, words):
    backend = VLLM(speaking(language_model, renderer)[0], renderer, batch_size=2)
    both = backend.generate(words, Sampling(8), n=2)
    assert backend.generate(words[::-1], Sampling(8), n=2)[::-1] == both
    assert [answers[0] for answers in backend.generate([words[0]] * 2, Sampling(8))] == both[0]
    assert backend.generate(words, Sampling(8, seed=1), n=2) != both
    assert VLLM(f"{backend.url}/v1/", renderer).generate([], Sampling(8)) == []


def test_no_more_requests_than_were_allowed_are_under_way(speaking, language_model, renderer, words):
    url, speaker = speaking(language_model, renderer)
    together = threading.Barrier(3)  # passes only if as many really come together
    under_way, most = [], []

    def gate(body):
        under_way.append(body)
        most.append(len(under_way))
        together.wait(10)
        time.sleep(0.1)  # one too many would come meanwhile
        under_way.remove(body)

    backend = VLLM(url, renderer, batch_size=3)
    backend.generate(words[:1], Sampling(1, 0.5))  # the probe, which comes alone
    speaker.gate = gate
    backend.generate(words[:1], Sampling(1, 0.5), n=6)
    assert max(most) == 3


def test_stop_texts_and_tokens_end_answers(speaking, assistant, renderer, words):
    url, _ = speaking(assistant, renderer)
    backend, engine = VLLM(url, renderer), Engine(assistant, renderer)
    whole = engine.generate(words, Sampling(20, 0))[0][0]
    for stop in ({"stop": (whole.text[3:5],)}, {"stop_tokens": (whole.tokens[5],)}):
        sampling = Sampling(20, 0, **stop)
        assert all_same(backend.generate(words, sampling), engine.generate(words, sampling))
        assert backend.generate(words, sampling)[0][0].finish_reason == "stop" != whole.finish_reason


def test_what_ends_an_answer_is_said_here(speaking, assistant, renderer, words):
    """The server's own idea of it, as a checkpoint's generation_config may hold it, does not count."""
    (whole,) = Engine(assistant, renderer).generate(words[:1], Sampling(20, 0))[0]
    theirs, ours = copy.copy(renderer), copy.copy(renderer)
    theirs.stop_ids, ours.stop_ids = {whole.tokens[1]}, {whole.tokens[3]}
    (answer,) = VLLM(speaking(assistant, theirs)[0], ours).generate(words[:1], Sampling(20, 0))[0]
    assert answer.tokens == whole.tokens[:4]
    assert answer.finish_reason == "stop" and answer.text == renderer.decode(answer.tokens[:-1])


def test_streamed_pieces_are_the_answer(speaking, assistant, renderer, words):
    url, _ = speaking(assistant, renderer)
    backend, engine = VLLM(url, renderer), Engine(assistant, renderer)
    whole = engine.generate(words, Sampling(20, 0))[0][0]
    for sampling in (Sampling(20, 0), Sampling(20, 0, stop=(renderer.text(whole.tokens[10:12]),))):
        pieces, stream = [], backend.stream(words[0], sampling)
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as ended:
                assert same(ended.value, engine.generate(words, sampling)[0][0])
                assert "".join(pieces) == ended.value.text and len(pieces) > 2
                break


def test_a_server_with_raw_log_probabilities_is_refused_where_it_matters(speaking, language_model, tokenizer, words):
    renderer = Renderer(tokenizer)  # it reads text only, so that nothing is unsaid
    url, _ = speaking(language_model, renderer, mode="raw_logprobs")
    backend = VLLM(url, renderer)
    greedy = Sampling(4, 0)
    assert all_same(backend.generate(words, greedy), Engine(language_model, renderer).generate(words, greedy))
    backend.generate(words, Sampling(4, 1.0))
    for changed in ({"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"repetition_penalty": 1.2}):
        with pytest.raises(ChatwrightError, match="--logprobs-mode processed_logprobs"):
            backend.generate(words, Sampling(4, **changed))
        with pytest.raises(ChatwrightError, match="--logprobs-mode processed_logprobs"):
            next(backend.stream(words[0], Sampling(4, **changed)))


def test_the_context_ends_answers_and_refuses_prompts(speaking, language_model, renderer):
    backend = VLLM(speaking(language_model, renderer)[0], renderer)
    row = Rendered([20] * (LONGEST - 3), [False] * (LONGEST - 3))
    (answer,) = backend.generate([row], Sampling(50, stop_tokens=()))[0]
    assert len(answer.tokens) <= 3
    with pytest.raises(ChatwrightError, match="prompt 1: the prompt has 100 tokens and the model's context is 99"):
        backend.generate([row, Rendered([20] * LONGEST, [False] * LONGEST)])


def test_what_it_cannot_do_is_said(speaking, assistant, renderer, conversations):
    backend = VLLM(speaking(assistant, renderer)[0], renderer)
    with pytest.raises(ChatwrightError, match=r"prompt 0.*no pictures; leave server empty"):
        backend.generate(conversations[1:2])
    with pytest.raises(ChatwrightError, match="form there; leave server empty"):
        backend.generate(conversations[:1], Sampling(form="{}"))


def test_faults_name_the_server_and_a_remedy(speaking, language_model, renderer, words, tmp_path):
    with pytest.raises(ChatwrightError, match=r"http://127.0.0.1:9: no vLLM server answers .*docs/scale.md"):
        VLLM("http://127.0.0.1:9", renderer)
    url, speaker = speaking(language_model, renderer, failures=3)
    backend = VLLM(url, renderer)
    assert len(backend.generate(words[:1], Sampling(2, 0))) == 1  # a passing fault
    speaker.failures = 4
    with pytest.raises(ChatwrightError, match=r"127.*/v1/completions failed with 503 \(overloaded\)"):
        backend.generate(words[:1], Sampling(2, 0))
    backend.model = "another"
    with pytest.raises(ChatwrightError, match=r"404 \(no model another\)"):
        backend.generate(words[:1], Sampling(2, 0))
    with pytest.raises(ChatwrightError, match=r"404 \(no model another\)"):
        next(backend.stream(words[0], Sampling(2, 0)))
    backend.model, speaker.breaks_after = "tiny", 3
    with pytest.raises(ChatwrightError, match=r"gave up an answer \(out of memory\)"):
        list(backend.stream(words[0], Sampling(20, 0)))
    with pytest.raises(ChatwrightError, match=r"500 .no weights in"):
        backend.load(tmp_path / "nothing")
    assert not speaker.paused
    url, _ = speaking(language_model, renderer, dev=False)
    with pytest.raises(ChatwrightError, match="VLLM_SERVER_DEV_MODE=1"):
        VLLM(url, renderer).load(tmp_path)


def test_loaded_weights_answer(speaking, language_model, renderer, words, tmp_path, monkeypatch):
    url, _ = speaking(language_model, renderer)
    backend, changed = VLLM(url, renderer), other(language_model)
    changed.save_pretrained(tmp_path / "changed")
    before = backend.generate(words, Sampling(12, 0))
    monkeypatch.chdir(tmp_path)
    backend.load("changed")
    after = backend.generate(words, Sampling(12, 0))
    assert all_same(after, Engine(changed, renderer).generate(words, Sampling(12, 0)))
    assert not any(same(*pair) for both in zip(before, after, strict=True) for pair in zip(*both, strict=True))


@pytest.fixture
def files(tmp_path, assistant, renderer, conversations):
    """A model that has learned to end its turns, prompts that it answers and a place for artifacts."""
    assistant.save_pretrained(tmp_path / "model")
    renderer.save(tmp_path / "model")
    asked = [
        (*conversations[i][:-1], Message.of("user", f"{conversations[i][-1].text} {n}"))
        for i in (0, 3)
        for n in range(4)
    ]
    save([Demonstration((*turns, Message.of("assistant", "dog"))) for turns in asked], tmp_path / "prompts.parquet")
    return tmp_path


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("adapter", ["", "lora"])
def test_rl_learns_from_what_a_server_says(speaking, talker, renderer, files, adapter):
    talker.save_pretrained(files / "model")
    url, speaker = speaking(other(talker), renderer)
    kept = []
    speaker.gate = lambda body: kept.append(sorted(path.name for path in (files / "rl/state/published").iterdir()))
    stage = RL(
        str(files / "model"), files / "prompts.parquet", verifier="tests.pipeline:shortness", method="grpo",
        responses=2, rollouts=8, minibatches=2, micro_batch=4, iterations=3, max_new_tokens=8, temperature=0.8,
        server=url, adapter=Adapter(adapter, dropout=0.0), training=course(learning_rate=3e-2),
    )  # fmt: skip
    execute(stage, files / "rl")
    fresh = [line["fresh_log_ratio"] for line in lines_of(files / "rl") if "fresh_log_ratio" in line]
    assert len(fresh) == 6 and max(fresh) < 1e-4
    assert [folder.name for folder in speaker.loaded] == ["00000", "00001", "00002"]
    assert {tuple(names) for names in kept} == {("00000",), ("00001",), ("00002",)}
    assert not (files / "rl/state").exists()


def test_rl_goes_on_where_a_server_failed(speaking, talker, renderer, files):
    talker.save_pretrained(files / "model")
    url, speaker = speaking(talker, renderer)
    stage = RL(
        str(files / "model"), files / "prompts.parquet", verifier="tests.pipeline:shortness", method="grpo",
        responses=2, rollouts=8, minibatches=2, iterations=3, max_new_tokens=8, server=url,
        training=course(learning_rate=3e-2),
    )  # fmt: skip
    execute(stage, files / "whole")

    def gate(body):
        speaker.failures = 1000 * (len(speaker.loaded) == 5)  # in the second round

    speaker.gate = gate
    with pytest.raises(ChatwrightError, match="503"):
        execute(stage, files / "cut")
    speaker.gate, speaker.failures = lambda body: None, 0
    execute(stage, files / "cut")
    assert [folder.name for folder in speaker.loaded[3:]] == ["00000", "00001", "00001", "00002"]
    weights = [(files / out / "model/model.safetensors").read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_what_has_arrived_is_judged_while_a_server_writes_on(speaking, talker, renderer, files, monkeypatch):
    """The answers to the second prompt come only after those to the first have been judged."""
    talker.save_pretrained(files / "model")
    url, speaker = speaking(talker, renderer)
    first = int(np.random.default_rng(0).permutation(8)[0])
    row = renderer.prompt(load(files / "prompts.parquet", Prompt)[first].messages)
    judged = threading.Event()

    def judge(prompt: Prompt, text: str) -> float:
        judged.set()
        return float(len(text))

    monkeypatch.setattr("tests.pipeline.shortness", judge)
    RewardModel(talker).save(files / "reward")
    settings = {
        "reward": str(files / "reward"), "verifier": "tests.pipeline:shortness", "method": "grpo", "responses": 4,
        "rollouts": 8, "minibatches": 1, "micro_batch": 4, "iterations": 1, "max_new_tokens": 8, "training": course(),
        "server": url,
    }  # fmt: skip
    execute(RL(str(files / "model"), files / "prompts.parquet", **settings), files / "free")
    judged.clear()
    late = []

    def gate(body):
        if body["max_tokens"] > 1 and body["prompt"] != row.input_ids:
            late.append(judged.wait(10))

    speaker.gate = gate
    execute(RL(str(files / "model"), files / "prompts.parquet", **settings), files / "held")
    assert late == [True] * 4
    free, held = ([line["reward_model"] for line in lines_of(files / out)] for out in ("free", "held"))
    assert free == held


def test_stages_let_a_server_answer(speaking, talker, renderer, files):
    """Whatever weights it had before; greedy where stages can be, so that the engine says the same."""
    talker.save_pretrained(files / "model")
    other(talker).save_pretrained(files / "other")
    renderer.save(files / "other")
    url, speaker = speaking(other(talker), renderer)
    model, prompts, judge = str(files / "model"), files / "prompts.parquet", "tests.pipeline:shortness"
    for server, out in ((url, "server"), ("", "engine")):
        arms = {"one": model, "two": str(files / "other")}
        execute(Compare(arms, prompts, "one", judge, 0, 8, server=server), files / out)
    assert (files / "server/answers.jsonl").read_text() == (files / "engine/answers.jsonl").read_text()
    assert [folder.name for folder in speaker.loaded] == ["model", "other"]
    execute(BestOfN(model, prompts, verifier=judge, n=4, max_new_tokens=8, server=url), files / "bestofn")
    execute(Annotate(model, prompts, max_new_tokens=8, heldout=0.3, server=url), files / "annotate")
    assert [folder.name for folder in speaker.loaded[2:]] == ["model", "model"]
