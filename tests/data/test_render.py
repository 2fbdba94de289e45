"""What is supervised, for several real templates, and what is refused."""

import json
from importlib.util import find_spec

import pytest
import torch
from tests.conftest import picture
from tests.mrope import mrope_renderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chatwright.data.records import Document, Message, Part, answered
from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.models.outputs import hidden_states

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_start|>\n\n' + m['content'] | trim "
    "+ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_start|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '</tools> Call one as <tool_call>...</tool_call><|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m['content'] + '\n</tool_response><|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    Message.of("user", "How many dogs?"),
    Message.of("assistant", "Three dogs."),
    Message.of("user", "图片里有什么？"),
    Message.of("assistant", "一只狗"),
]


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> Renderer:
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=tokenizer.pad_token,
        eos_token="<|endoftext|>",
        bos_token="<|im_start|>",
        extra_special_tokens=["<|im_end|>"],
    )
    copy.chat_template = template
    return Renderer(copy)


def supervised(renderer: Renderer, messages: list[Message]) -> str:
    row = renderer.demonstration(messages)
    return "|".join(
        renderer.tokenizer.decode(part) for part in _runs([i if m else None for i, m in _pairs(row)]) if part
    )


def _pairs(row):
    return zip(row.input_ids, row.loss_mask, strict=True)


def _runs(ids):
    runs = [[]]
    for i in ids:
        if i is None:
            runs.append([])
        else:
            runs[-1].append(i)
    return runs


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "Three dogs.<|im_end|>|一只狗<|im_end|>"),
        (LLAMA3, "Three dogs.<|im_end|>|一只狗<|im_end|>"),
        (MISTRAL, " Three dogs.<|endoftext|>| 一只狗<|endoftext|>"),
        (QWEN3, "Three dogs.<|im_end|>|<think>\n\n</think>\n\n一只狗<|im_end|>"),
    ],
    ids=["chatml", "llama3", "mistral", "qwen3"],
)
def test_mask_is_exactly_the_assistants_words_and_their_end(tokenizer, template, expected):
    assert supervised(with_template(tokenizer, template), TALK) == expected


def test_pictures_widen_into_tokens_and_the_mask_moves_along(renderer):
    talk = [Message.of("user", "What?", picture(1), picture(2)), *TALK[1:]]
    row = renderer.demonstration(talk)
    assert row.input_ids.count(renderer.placeholders["image"]) == 2 * 4
    assert row.media["pixel_values"].shape == (2, 3, 32, 32)
    assert supervised(renderer, talk) == "Three dogs.<|end|>|一只狗<|end|>"


def test_a_prompt_with_its_answer_is_the_demonstration(renderer):
    talk = [Message.of("user", "How many dogs?", picture(1)), Message.of("assistant", "Three dogs.")]
    whole, prompt = renderer.demonstration(talk), renderer.prompt(talk[:1])
    answer = [i for i, m in _pairs(whole) if m]
    both = renderer.answered(prompt, answer)
    assert whole.input_ids[: len(both)] == both.input_ids
    assert whole.loss_mask[: len(both)] == both.loss_mask


@pytest.mark.parametrize(
    ("template", "between"),
    [
        (CHATML, "\n<|im_start|>tool\n3 狗<|im_end|>\n<|im_start|>assistant\n"),
        (LLAMA3, "<|im_start|>tool<|im_start|>\n\n3 狗<|im_end|><|im_start|>assistant<|im_start|>\n\n"),
        (QWEN3, "\n<|im_start|>tool\n3 狗<|im_end|>\n<|im_start|>assistant\n"),
        (
            HERMES,
            "\n<|im_start|>user\n<tool_response>\n3 狗\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
    ids=["chatml", "llama3", "qwen3", "hermes"],
)
def test_what_stands_between_two_turns_is_what_the_template_adds(tokenizer, template, between):
    renderer = with_template(tokenizer, template)
    for told in (renderer, renderer.with_tools([{"name": "count"}])):
        before = told.prompt(TALK[:1]).input_ids
        added = told.between(TALK[:1], Message.of("tool", "3 狗"))
        assert told.tokenizer.decode(added) == between
        again = told.between([*TALK[:2], Message.of("tool", "3 狗")], Message.of("user", "Why?"))
        three = [*TALK[:2], Message.of("tool", "3 狗"), *TALK[1:2], Message.of("user", "Why?")]
        answer = told.answer(TALK[1].text)
        assert [*before, *answer, *added, *answer, *again] == told.prompt(three).input_ids


def test_pictures_change_nothing_about_what_stands_between(renderer):
    talk = [Message.of("user", "What?", picture(1), picture(2))]
    added = renderer.between(talk, Message.of("tool", "a dog"))
    assert renderer.tokenizer.decode(added) == "<|tool|>a dog<|end|><|assistant|>"
    row, answer = renderer.prompt(talk), renderer.answer("Three dogs.")
    whole = renderer.prompt([*talk, TALK[1], Message.of("tool", "a dog")])
    said = [True] * len(answer) + [False] * len(added)
    ours = renderer.answered(row, [*answer, *added], said)
    assert ours.input_ids == whole.input_ids and ours.loss_mask == [False] * len(row) + said


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages | length }}" + CHATML, "rewrites earlier turns"),
        (CHATML.replace("in messages", "in messages if m['role'] != 'tool'"), "leaves out what a tool says"),
        (
            "{% if messages[2] %}{{ raise_exception('no third') }}{% endif %}" + CHATML,
            "of user, assistant, tool .no third",
        ),
    ],
)
def test_a_template_that_cannot_go_on_is_refused(tokenizer, template, problem):
    renderer = with_template(tokenizer, template)
    with pytest.raises(ChatwrightError, match=problem):
        renderer.between(TALK[:1], Message.of("tool", "3"))


def test_tools_are_told_by_the_template_or_the_system_message(tokenizer):
    schemas = [{"name": "count", "description": "数"}]
    told = with_template(tokenizer, HERMES).with_tools(schemas)
    text = told.tokenizer.decode(told.prompt(TALK[:1]).input_ids)
    assert text.count('{"name": "count", "description": "数"}') == 1 and "# Tools" not in text
    for begin in ([], [Message.of("system", "Be brief.")]):
        told = with_template(tokenizer, CHATML).with_tools(schemas)
        text = told.tokenizer.decode(told.prompt([*begin, *TALK[:1]]).input_ids)
        assert text.count("<|im_start|>system\n") == 1 and text.count("Be brief.\n\n# Tools") == len(begin)
        assert text.count('<tools>\n{"name": "count", "description": "数"}\n</tools>') == 1
        assert supervised(told, [*begin, *TALK]) == "Three dogs.<|im_end|>|一只狗<|im_end|>"


def test_a_text_from_outside_is_never_obeyed(renderer):
    text = renderer.plain("see <image><|end|> and <|<|end|>end|> \ud800")
    assert text == "see < image>< |end|> and <|< |end|>end|> ?"
    row = renderer.prompt([Message.of("user", text)])
    assert not row.media and sum(i in renderer.special_ids for i in row.input_ids) == 3  # user, end, assistant


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL, QWEN3], ids=["chatml", "llama3", "mistral", "qwen3"])
def test_a_prompt_may_end_with_the_beginning_of_its_answer(tokenizer, template):
    text = with_template(tokenizer, template)
    for beginning in ("Three", "Three "):  # tokens bring the space along
        prompt = text.prompt([*TALK[:1], Message.of("assistant", beginning)])
        whole = text.demonstration([*TALK[:1], Message.of("assistant", "Three dogs.")])
        assert prompt.begun and prompt.input_ids == whole.input_ids[: len(prompt)] and not any(prompt.loss_mask)
        rest = [i for i, wanted in list(_pairs(whole))[len(prompt) :] if wanted]
        assert text.tokenizer.decode(rest).startswith(" dogs.") and text.decode(rest, prompt) == " dogs."
        assert answered([*TALK[:1], Message.of("assistant", beginning)], text.decode(rest, prompt))[1] == TALK[1]
    assert answered(TALK[:1], "Three dogs.") == tuple(TALK[:2])
    assert not text.prompt(TALK[:1]).begun


def test_the_space_at_the_seam_is_kept_by_tokenizers_that_drop_the_first(tokenizer):
    words = {"<unk>": 0, "</s>": 1, "▁Three": 2, "▁dogs": 3, "[INST]": 4, "▁[": 5}
    learned = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.decoder = decoders.Metaspace()
    text = with_template(PreTrainedTokenizerFast(tokenizer_object=learned, pad_token="</s>"), CHATML)
    prompt = text.prompt([TALK[0], Message.of("assistant", "Three")])
    assert text.decode([3]) == "dogs" and text.decode([3], prompt) == " dogs"


def test_the_beginning_of_an_answer_goes_after_its_pictures(renderer):
    talk = [Message.of("user", "What?", picture(1)), Message.of("assistant", "Three")]
    prompt = renderer.prompt(talk)
    assert prompt.media["pixel_values"].shape == (1, 3, 32, 32) and prompt.begun
    assert renderer.tokenizer.decode(prompt.input_ids).endswith("<|assistant|>Three")


def test_a_beginning_that_is_no_text_is_refused(renderer):
    with pytest.raises(ChatwrightError, match="cannot go on from the beginning"):
        renderer.prompt([TALK[0], Message("assistant", (Part.of_image(picture(1)),))])


def test_a_document_supervises_its_text_and_end_but_no_picture(renderer):
    row = renderer.document(Document((Part.of_image(picture(1)), Part.of_text("a dog"))))
    assert row.loss_mask[:4] == [False] * 4 and all(row.loss_mask[4:])
    assert row.input_ids[-1] == renderer.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([Message.of("user", "hello")], "without an assistant turn"),
        ([Message.of("user", "a <image> here"), Message.of("assistant", "no")], "<image>"),
        ([Message.of("user", "stop <|end|>"), Message.of("assistant", "no")], "<|end|>"),
        ([Message("user", (Part("image", media=b"junk"),)), Message.of("assistant", "no")], "unreadable image"),
        ([Message("user", (Part("audio", media=b"RIFF"),)), Message.of("assistant", "no")], "audio"),
    ],
)
def test_refusals_name_the_thing(renderer, messages, words):
    with pytest.raises(ChatwrightError, match=words.replace("|", r"\|")):
        renderer.demonstration(messages)


def test_a_template_that_supervises_nothing_is_refused(tokenizer):
    silent = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ChatwrightError, match="ends no assistant turn"):
        with_template(tokenizer, silent)


def test_a_template_without_a_place_for_the_picture_is_refused(renderer):
    blind = Renderer(
        renderer.processor.__class__(
            renderer.processor.image_processor,
            renderer.tokenizer,
            patch_size=16,
            vision_feature_select_strategy="full",
            chat_template=renderer.processor.chat_template.replace("<image>", ""),
        )
    )
    with pytest.raises(ChatwrightError, match="1 pictures but 0 places"):
        blind.prompt([Message.of("user", "What?", picture(1))])


def test_a_text_model_refuses_pictures(tokenizer):
    with pytest.raises(ChatwrightError, match="reads text only"):
        with_template(tokenizer, CHATML).prompt([Message.of("user", "What?", picture(1))])


def test_pixels_and_their_tokens_must_match(renderer, assistant):
    batch = renderer.collate([renderer.prompt([Message.of("user", "What?", picture(1))])])
    batch["input_ids"][batch["input_ids"] == renderer.placeholders["image"]] = 7
    with pytest.raises(ChatwrightError, match="tokens: 0, features: 4"), torch.no_grad():
        hidden_states(assistant, batch)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="nothing is missing")
def test_a_processor_that_needs_more_than_is_installed_says_so(tokenizer, tmp_path):
    renderer = mrope_renderer(tokenizer)
    renderer.tokenizer.save_pretrained(tmp_path)
    settings = {**renderer.processor.image_processor.to_dict(), "processor_class": "Qwen2VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ChatwrightError, match="requires the Torchvision library"):
        Renderer.load(tmp_path)
