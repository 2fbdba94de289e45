"""A bad row is one line that names the file, the row, the field and the remedy, whatever is in the row."""

import pytest
from tests.data.rows import ASK, RED, SAY, TURNS

from chatwright.data.records import Comparison, Demonstration, Document, Prompt
from chatwright.data.store import load
from chatwright.errors import ChatwrightError


def chat(*turns, **columns):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **columns}


# A bad row, and the line that people read about it, after "data.jsonl:1: ".
BAD = {
    "not json": ("{'text': 1}\n",
        "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "write one object a line"),
    "not an object": (["a"], "row: is ['a'] and not an object; write one {...} a row"),
    "no assistant": (chat(("user", "Hi")),
        "messages: has no assistant turn; add the answer that the model should give"),
    "unknown role": (chat(("user", "Hi"), ("robot", "Yo")),
        "messages[1].role: unknown role 'robot'; use system, user, assistant, tool"),
    "no turns": ({"messages": []}, "messages: is empty; write its turns or remove the row"),
    "turns of a wrong type": ({"messages": 3}, "messages: is 3; write a text or a list of turns"),
    "a turn of a wrong type": ({"messages": ["Hi"]}, "messages[0]: is 'Hi'; write {'role': ..., 'content': ...}"),
    "two systems": (chat(("system", "a"), ("system", "b"), ("user", "Hi"), ("assistant", "Yo")),
        "messages: has a system turn after the first turn; keep one, at the start"),
    "empty turn": (chat(("user", "Hi"), ("assistant", " ")),
        "messages[1]: the assistant says nothing; write its text or remove the row"),
    "content of a wrong type": (chat(("user", "Hi"), ("assistant", None)),
        "messages[1].content: is None; write a text or a list of parts"),
    "half a character": (chat(("user", "Hi"), ("assistant", "Yo \ud83d")),
        "messages[1].content: holds '\\ud83d', half of a character; remove it"),
    "tool calls": ({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "messages[1].tool_calls: cannot be kept; write the call as text in content"),
    "unknown part": (chat(("user", [{"type": "smell"}]), ("assistant", "Yo")),
        "messages[0].content[0].type: unknown part 'smell'; use text, image, audio, video or image_url"),
    "text part without text": (chat(("user", [{"type": "text", "txt": "Hi"}]), ("assistant", "Yo")),
        "messages[0].content[0]: has no text but ['txt']; write {'type': 'text', 'text': ...}"),
    "web address": (chat(("user", [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}])),
        "messages[0].content[0]: https://x.org/a.png is not fetched, nothing is; save the file and give its path"),
    "missing picture": (chat(("user", "Hi"), ("assistant", "Yo"), image="lost.png"),
        "image: no such file {folder}/lost.png; paths are relative to the data file"),
    "too long a path": (chat(("user", "Hi"), ("assistant", "Yo"), image="a" * 300),
        "image: no such file {folder}/aaa"),
    "picture of a wrong type": (chat(("user", "Hi"), ("assistant", "Yo"), image=7),
        "image: is 7; give a path or a data URL"),
    "struct without bytes": (chat(("user", "Hi"), ("assistant", "Yo"), image={"size": 3}),
        "image: holds neither bytes nor a path but ['size']; give a path or a data URL"),
    "more marks": (chat(("user", "<image><image>"), ("assistant", "Yo"), images=["red.png"]),
        "messages[0].content: marks one image more than the row has; add it or remove the mark"),
    "more pictures": (chat(("user", "<image>"), ("assistant", "Yo"), images=["red.png", "red.png"]),
        "images: has 1 more than the text marks; add <image> to the text"),
    "llava without its picture": ({"conversations": [{"from": "human", "value": "<image>What?"}]},
        "conversations[0].value: marks one image more than the row has; add it or remove the mark"),
    "no user for the picture": (chat(("assistant", "Yo"), image="red.png"),
        "messages: has no user turn for the image; add one"),
    "alpaca without output": ({"instruction": "Hi", "output": ""}, "output: is empty; fill it or remove the row"),
    "alpaca history": ({"instruction": "Hi", "output": "Yo", "history": ["a"]},
        "history: is ['a']; write [question, answer] pairs"),
    "unknown format": ({"body": "Hi"},
        "row: unknown format with ['body']; use one of: comparison {messages, ranks, responses}; preference {chosen, "
        "rejected}; messages {messages}; conversations {conversations}; alpaca {instruction, output}; "
        "completion {completion, prompt}; steps {completions, labels, prompt}; question {prompt}; document {text}"),
    "another kind": ({"text": "Hi"}, "row: is a document and not a demonstration; choose a file of demonstrations"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_demonstration_is_named(write, case):
    row, line = BAD[case]
    path = write(row)
    with pytest.raises(ChatwrightError) as caught:
        load(path, Demonstration)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:1: {line}".replace("{folder}", str(path.parent)))


BAD_PROMPTS = {
    "starts with the answer": (chat(("assistant", "Yo")),
        "messages: asks nothing at its end; end it with what is to be answered"),
    "reference of a wrong type": ({"prompt": "Hi", "answer": ["Yo"]}, "answer: is ['Yo']; write a text or a number"),
    "reference beside the choices": ({"prompt": "Hi", "reference": "c", "choices": ["a", "b"]},
        "reference: 'c' is not among the choices; add it to them"),
    "choice out of range": ({"prompt": "Hi", "answer": 2, "choices": ["a", "b"]},
        "answer: is 2 but there are 2 choices; count from 0"),
    "choices of a wrong type": ({"prompt": "Hi", "choices": "ab"}, "choices: is 'ab'; write a list of texts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_is_named(write, case):
    row, line = BAD_PROMPTS[case]
    path = write(row)
    with pytest.raises(ChatwrightError) as caught:
        load(path, Prompt)
    assert str(caught.value) == f"{path}:1: {line}"


BAD_COMPARISONS = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, "prompt: is empty; write its turns or remove the row"),
    "no response": ({"prompt": "Hi", "chosen": "a", "rejected": None},
        "rejected: is empty; write its turns or remove the row"),
    "ends with the user": ({"chosen": [ASK], "rejected": [ASK]},
        "chosen: does not end with a text of the assistant; end it with the response"),
    "two conversations": ({"chosen": [ASK, SAY], "rejected": [SAY, SAY]},
        "rejected: answers another conversation than chosen; make the earlier turns equal"),
    "one response": ({"messages": [ASK], "responses": ["a"], "ranks": [0]}, "responses: has 1; a comparison needs two"),
    "one rank": ({"messages": [ASK], "responses": ["a", "b"], "ranks": [0]},
        "ranks: is [0]; write 2 places, 0 the best"),
    "half a rank": ({"messages": [ASK], "responses": ["a", "b"], "ranks": [0, 0.5]},
        "ranks: is [0, 0.5]; write 2 places, 0 the best"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COMPARISONS)
def test_a_bad_comparison_is_named(write, case):
    row, line = BAD_COMPARISONS[case]
    path = write(row)
    with pytest.raises(ChatwrightError) as caught:
        load(path, Comparison)
    assert str(caught.value) == f"{path}:1: {line}"


def test_the_row_is_counted_in_lines(write):
    path = write({"messages": [ASK, SAY]}, "\n\n", {"messages": [ASK]})
    with pytest.raises(ChatwrightError, match=r"data\.jsonl:4: messages: has no assistant turn"):
        load(path, Demonstration)


def test_mixed_formats_are_refused(write):
    path = write({"messages": [ASK, SAY]}, {"instruction": "Hi", "output": "Yo"})
    with pytest.raises(ChatwrightError) as caught:
        load(path, Demonstration)
    assert str(caught.value) == (
        f"{path}:2: row: is 'alpaca', the first row is 'messages'; give each format its own file"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>not found</html>", "unreadable image (of no known format); export it again as PNG or JPEG"),
        (RED.media[:45], "unreadable image ("),
        (b"", "unreadable image (of no known format); export it again as PNG or JPEG"),
    ],
)
def test_an_unreadable_picture_names_its_row_when_it_is_read(write, tmp_path, content, problem):
    path = write({"messages": [ASK, SAY]}, {"image": "bad.png", "messages": [ASK, SAY]})
    (tmp_path / "bad.png").write_bytes(content)
    rows = load(path, Demonstration)
    assert rows[0] == Demonstration(TURNS)
    with pytest.raises(ChatwrightError) as caught:
        rows[1]
    assert str(caught.value).startswith(f"{path}:2: image: {problem}")


def test_broken_base64_names_its_row_when_it_is_read(write):
    rows = load(write({"image": "data:image/png;base64,a!", "messages": [ASK, SAY]}), Demonstration)
    with pytest.raises(ChatwrightError, match=r"data\.jsonl:1: image: is not base64 \(.*\); encode the file again"):
        rows[0]


def test_missing_files_and_folders(write, tmp_path):
    write({"messages": [ASK, SAY]}, name="train.jsonl")
    with pytest.raises(ChatwrightError) as caught:
        load(tmp_path / "trian.jsonl", Demonstration)
    assert str(caught.value) == f"{tmp_path}/trian.jsonl: no such file; did you mean train.jsonl?"
    with pytest.raises(ChatwrightError, match=r"no such file; check its name in "):
        load(tmp_path / "zzzz", Demonstration)
    with pytest.raises(ChatwrightError, match=r"no such file; the folder .*nowhere does not exist either"):
        load(tmp_path / "nowhere" / "a.jsonl", Demonstration)
    with pytest.raises(ChatwrightError, match=r"is a folder; name a file in it \(train\.jsonl\)"):
        load(tmp_path, Demonstration)
    with pytest.raises(ChatwrightError, match=r"red\.png: unknown kind of file '\.png'; use \.parquet, "):
        load(tmp_path / "red.png", Demonstration)


def test_files_that_are_not_what_they_are_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "x"},\n]')
    with pytest.raises(ChatwrightError, match=r"a\.json:2: not JSON \(.*\); mend it or make it again"):
        load(tmp_path / "a.json", Document)
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ChatwrightError, match=r"a\.txt: not UTF-8 text \(.*\); save it as UTF-8"):
        load(tmp_path / "a.txt", Document)
    (tmp_path / "a.jsonl").write_bytes('{"text": "café"}'.encode("latin-1"))
    with pytest.raises(ChatwrightError, match=r"a\.jsonl:1: not JSON \(.*\); write one object a line"):
        load(tmp_path / "a.jsonl", Document)
    (tmp_path / "empty.jsonl").touch()
    assert len(load(tmp_path / "empty.jsonl", Document)) == 0


GOOD = [
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}, SAY],
        "images": ["red.png"]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "red.png"}}]}, SAY]},
    {"conversations": [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Yo"}],
        "image": {"path": "red.png"}},
    {"instruction": "Hi", "input": "", "output": "Yo", "history": [["a", "b"]], "system": "Be short."},
    {"prompt": [ASK], "completion": [SAY]},
    {"question": "Hi", "answer": 1, "choices": ["a", "b"], "score": "exact", "meta": {"task": "x"}},
    {"prompt": [ASK], "chosen": [SAY], "rejected": SAY},
    {"messages": [ASK], "responses": ["a", "b"], "ranks": [0, 1], "annotator": "me", "how": "pair"},
    {"content": ["Hi", {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "wav"}}]},
]  # fmt: skip
WRONG = [None, True, -1, 1.5, "", "a\nb", "<image>", "\0", "data:,", "http://x", [], [[]], [None], [1], {},
    {"a": 1}, {"type": "image"}, {"type": None}, {"bytes": "x"}, {"url": 5}, {"data": "!!"},
    {"role": [], "content": ""}]  # fmt: skip


def spoiled(value, wrong):
    """Every way to put something wrong in one place of a row, or to leave that place out."""
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        for other in [wrong, *spoiled(inner, wrong)]:
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = other
            yield copy
        if isinstance(value, dict):
            yield {name: inner for name, inner in value.items() if name != key}


@pytest.mark.parametrize("row", GOOD, ids=lambda row: "-".join(row))
@pytest.mark.parametrize("kind", [Document, Prompt], ids=lambda kind: kind.kind)
def test_any_row_is_read_or_refused_in_one_line(write, row, kind):
    for wrong in WRONG:
        for bad in spoiled(row, wrong):
            path = write(bad)
            try:
                assert isinstance(load(path, kind)[0], kind)
            except ChatwrightError as error:
                assert str(error).startswith(f"{path}:1: ")
                assert "\n" not in str(error)
