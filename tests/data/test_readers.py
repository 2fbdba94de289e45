"""Files in the formats that people have become records."""

import base64
import io

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.rows import ASK, BLUE, RED, SAY, TURNS

from chatwright.data.records import Comparison, Demonstration, Document, Message, Part, Prompt
from chatwright.data.store import load, save


def url(part):
    return "data:image/png;base64," + base64.b64encode(part.media).decode()


def text(value):
    return Part.of_text(value)


# Every format, as its users write it, and the demonstration that it is.
CHATS = {
    "openai": ({"messages": [ASK, SAY]}, TURNS),
    "openai parts and data url": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": url(RED), "detail": "low"}},
                    ],
                },
                SAY,
            ]
        },
        (Message("user", (text("What is this?"), RED)), TURNS[1]),
    ),
    "openai image path": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "red.png"}}]}, SAY]},
        (Message("user", (RED,)), TURNS[1]),
    ),
    "openai audio": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "YWJj", "format": "wav"}}],
                },
                SAY,
            ]
        },
        (Message("user", (Part("audio", media=b"abc"),)), TURNS[1]),
    ),
    "hugging face parts": (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "red.png"}, "What?"]}, SAY]},
        (Message("user", (RED, text("What?"))), TURNS[1]),
    ),
    "trl images beside": (
        {
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}, SAY],
            "images": ["red.png", url(BLUE)],
        },
        (Message("user", (RED, BLUE)), TURNS[1]),
    ),
    "sharegpt": (
        {
            "system": "Be short.",
            "conversations": [
                {"from": "human", "value": "What is this?"},
                {"from": "gpt", "value": "A cat."},
                {"from": "observation", "value": "{}"},
                {"from": "gpt", "value": "Done."},
            ],
        },
        (Message.of("system", "Be short."), *TURNS, Message.of("tool", "{}"), Message.of("assistant", "Done.")),
    ),
    "llava": (
        {
            "image": "red.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}],
        },
        (Message("user", (RED, text("What is this?"))), TURNS[1]),
    ),
    "llava mark at the end": (
        {
            "images": ["red.png", "blue.png"],
            "conversations": [{"from": "human", "value": "<image> and\n<image>"}, {"from": "gpt", "value": "A cat."}],
        },
        (Message("user", (RED, text(" and"), BLUE)), TURNS[1]),
    ),
    "picture without a mark": (
        {
            "image": {"bytes": None, "path": "red.png"},
            "messages": [{"role": "system", "content": "Be short."}, ASK, SAY],
        },
        (Message.of("system", "Be short."), Message("user", (RED, text("What is this?"))), TURNS[1]),
    ),
    "alpaca": (
        {
            "instruction": "Translate.",
            "input": "猫",
            "output": "cat",
            "history": [["Hi", "Hello"]],
            "system": "Be short.",
        },
        (
            Message.of("system", "Be short."),
            Message.of("user", "Hi"),
            Message.of("assistant", "Hello"),
            Message.of("user", "Translate.\n猫"),
            Message.of("assistant", "cat"),
        ),
    ),
    "trl completion": ({"prompt": "What is this?", "completion": "A cat."}, TURNS),
    "trl completion of turns": ({"prompt": [ASK], "completion": [SAY]}, TURNS),
    "question": ({"question": "What is this?", "answer": "A cat."}, TURNS),
}


@pytest.mark.parametrize("format", CHATS)
def test_chat_formats_become_demonstrations_and_prompts(write, format):
    row, messages = CHATS[format]
    assert load(write(row), Demonstration)[0] == Demonstration(messages)
    assert load(write([row], name="data.json"), Demonstration)[0] == Demonstration(messages)
    prompt = load(write(row), Prompt)[0]
    assert (prompt.messages, prompt.reference) == (messages[:-1], messages[-1].text)


PROMPT = (Message.of("user", "What is this?"),)
PREFERENCES = {
    "texts": {"prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."},
    "turns": {"prompt": [ASK], "chosen": [SAY], "rejected": [{"role": "assistant", "content": "A dog."}]},
    "whole conversations": {"chosen": [ASK, SAY], "rejected": [ASK, {"role": "assistant", "content": "A dog."}]},
    "prompt repeated": {
        "prompt": "What is this?",
        "chosen": [ASK, SAY],
        "rejected": [ASK, {"role": "assistant", "content": "A dog."}],
    },
    "llama-factory": {
        "conversations": [{"from": "human", "value": "What is this?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
    },
    "alpaca": {"instruction": "What is this?", "input": "", "chosen": "A cat.", "rejected": "A dog."},
}


@pytest.mark.parametrize("format", PREFERENCES)
def test_preferences_become_comparisons(write, format):
    path = write(PREFERENCES[format])
    assert list(load(path, Comparison)) == [Comparison(PROMPT, ("A cat.", "A dog."), (0, 1), "file", "pair")]
    assert list(load(path, Prompt)) == [Prompt(PROMPT)]


def test_a_preference_about_a_picture(write):
    path = write({"images": ["red.png"], "prompt": "What is this?", "chosen": "Red.", "rejected": "Blue."})
    assert load(path, Comparison)[0].messages == (Message("user", (RED, text("What is this?"))),)


def test_prompts_with_references(write):
    path = write(
        {"question": "2 + 2?", "answer": 4, "task": "sums", "n": 3, "meta": {"split": "test"}},
        {"image": "red.png", "prompt": "Which?", "reference": "red", "choices": ["red", "blue"]},
        {"question": "Which?", "answer": 1, "choices": ["red", "blue"], "score": "exact"},
        {"prompt": [ASK]},
    )
    assert list(load(path, Prompt)) == [
        Prompt((Message.of("user", "2 + 2?"),), "4", meta={"task": "sums", "n": 3, "split": "test"}),
        Prompt((Message("user", (RED, text("Which?"))),), "red", ("red", "blue"), "choice"),
        Prompt((Message.of("user", "Which?"),), "blue", ("red", "blue"), "exact"),
        Prompt(PROMPT),
    ]


def test_documents(write):
    assert list(load(write({"text": "One."}, "\n", {"text": "Two.", "url": "x"}), Document)) == [
        Document((text("One."),)),
        Document((text("Two."),), {"url": "x"}),
    ]
    pictured = write({"text": "Look: <image>Red.", "images": ["red.png"]})
    assert load(pictured, Document)[0].content == (text("Look: "), RED, text("Red."))
    assert list(load(write("\ufeffA line\nand another.\n\n\nNext.\n", name="book.txt"), Document)) == [
        Document((text("A line\nand another."),)),
        Document((text("Next."),)),
    ]


def test_a_mark_without_media_is_text(write):
    path = write({"messages": [{"role": "user", "content": "What does <image> mean?"}, SAY]})
    assert load(path, Demonstration)[0].messages[0].text == "What does <image> mean?"


def test_datasets_parquet_with_pictures(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "source": datasets.Value("string"),
        }
    )
    rows = [
        {"images": [RED.image()], "messages": [{"role": "user", "content": "<image>What?"}, SAY], "source": "us"},
        {"images": [], "messages": [ASK, SAY], "source": None},
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "hub.parquet")
    first, second = load(tmp_path / "hub.parquet", Demonstration)
    assert [part.type for part in first.messages[0].content] == ["image", "text"]
    assert first.messages[0].content[0].image().getpixel((0, 0)) == (255, 0, 0)
    assert first.meta == {"source": "us"}
    assert second == Demonstration(TURNS)


def test_datasets_reads_what_we_write(tmp_path):
    import datasets

    record = Demonstration((Message("user", (RED, text("What?"))), TURNS[1]))
    save([record], tmp_path / "ours.parquet")
    again = datasets.Dataset.from_parquet(str(tmp_path / "ours.parquet"), cache_dir=str(tmp_path / "cache"))
    again.to_parquet(tmp_path / "theirs.parquet")
    assert list(load(tmp_path / "theirs.parquet", Demonstration)) == [record]


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    picture = PIL.Image.new("RGB", (6, 2), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", exif=exif)
    assert Part("image", media=buffer.getvalue()).image().size == (2, 6)


def test_our_parquet_rewritten_with_wider_types(tmp_path):
    record = Demonstration((Message("user", (RED, text("What?"))), TURNS[1]), {"n": 1})
    save([record], tmp_path / "ours.parquet")
    part = pa.struct({"type": pa.large_string(), "text": pa.large_string(), "media": pa.large_binary()})
    turn = pa.struct({"role": pa.large_string(), "content": pa.large_list(part)})
    wide = pa.schema({"messages": pa.large_list(turn), "meta": pa.large_string()})
    pq.write_table(pq.read_table(tmp_path / "ours.parquet").cast(wide), tmp_path / "theirs.parquet")
    assert list(load(tmp_path / "theirs.parquet", Demonstration)) == [record]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.parquet"])
def test_a_prompt_keeps_the_beginning_of_its_answer(tmp_path, name):
    begun = Prompt((Message.of("user", "Write a tweet."), Message.of("assistant", "Today I")))
    save([begun], tmp_path / name)
    assert list(load(tmp_path / name, Prompt)) == [begun]
    (tmp_path / "by-hand.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Write a tweet."}, {"role": "assistant", "content": "Today I"}], '
        '"reference": " am"}\n'
    )
    assert load(tmp_path / "by-hand.jsonl", Prompt)[0] == Prompt(begun.messages, " am")
    assert load(tmp_path / "by-hand.jsonl", Demonstration)[0].messages[1] == Message.of("assistant", "Today I am")
