"""Records keep every field on disk, files appear whole or not at all, and broken files are named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatwright.data import store
from chatwright.data.records import ROLES, Comparison, Demonstration, Document, Message, Part, Prompt
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError

texts = st.text(st.characters(codec="utf-8"), max_size=20)
said = texts.filter(str.strip)
pictures = st.builds(lambda r, g, b: Part.of_image(PIL.Image.new("RGB", (3, 2), (r, g, b))), *[st.integers(0, 255)] * 3)
sounds = st.builds(lambda type, media: Part(type, media=media), st.sampled_from(["audio", "video"]), st.binary())
parts = said.map(Part.of_text) | pictures | sounds
contents = st.lists(parts, min_size=1, max_size=3).map(tuple)
leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | texts
metas = st.dictionaries(texts, leaves | st.lists(leaves, max_size=2), max_size=3)
systems = st.lists(st.builds(Message, st.just("system"), contents), max_size=1)
turns = st.lists(st.builds(Message, st.sampled_from(ROLES[1:]), contents), max_size=2)
asked = st.builds(lambda a, b, c: (*a, *b, Message("user", c)), systems, turns, contents)
answered = st.builds(lambda a, b: (*a, Message("assistant", b)), asked, contents)


@st.composite
def comparisons(draw):
    responses = draw(st.lists(texts, min_size=2, max_size=4))
    ranks = draw(st.lists(st.integers(0, 9), min_size=len(responses), max_size=len(responses)))
    return Comparison(draw(asked), tuple(responses), tuple(ranks), draw(said), draw(said), draw(metas))


@st.composite
def prompts(draw):
    choices = draw(st.lists(texts, max_size=3))
    reference = draw(st.none() | (st.sampled_from(choices) if choices else texts))
    return Prompt(draw(asked), reference, tuple(choices), draw(said), draw(metas))


KINDS = {
    Document: st.builds(Document, contents, metas),
    Demonstration: st.builds(Demonstration, answered, metas),
    Prompt: prompts(),
    Comparison: comparisons(),
}


def dialogue(index: int) -> Demonstration:
    picture = PIL.Image.new("RGB", (8, 8), (index % 256, 0, 0))
    return Demonstration((Message.of("user", f"Question {index}?", picture), Message.of("assistant", "Red.")))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_field_of_every_kind_comes_back(tmp_path, kind, suffix):
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(KINDS[kind], max_size=3))
    def check(records):
        path = tmp_path / f"records{suffix}"
        save(records, path)
        assert list(load(path, kind)) == records

    check()


def test_jsonl_is_what_other_tools_read(tmp_path):
    path = tmp_path / "demo.jsonl"
    save([dialogue(3)], path)
    row = json.loads(path.read_text())
    image, question = row["messages"][0]["content"]
    assert image["type"] == "image"
    assert image["image"].startswith("data:image/png;base64,")
    assert question == {"type": "text", "text": "Question 3?"}
    assert row["messages"][1] == {"role": "assistant", "content": "Red."}


def test_rows_are_found_across_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "GROUP_ROWS", 4)
    records = [dialogue(index) for index in range(10)]
    save(iter(records), tmp_path / "many.parquet")
    assert pq.ParquetFile(tmp_path / "many.parquet").num_row_groups == 3
    loaded = load(tmp_path / "many.parquet", Demonstration)
    assert len(loaded) == 10
    assert [loaded[index] for index in (9, 0, 4, 3, -1)] == [records[index] for index in (9, 0, 4, 3, -1)]
    assert loaded[2:9:3] == records[2:9:3]
    with pytest.raises(IndexError):
        loaded[10]


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        save((dialogue(index) for index in range(50)), tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_thousands_of_pictures_are_read_in_a_moment(tmp_path):
    picture = Part("image", media=os.urandom(4096))
    record = Demonstration((Message("user", (picture, Part.of_text("What?"))), Message.of("assistant", "Noise.")))
    save((record for _ in range(5000)), tmp_path / "big.parquet")
    start = time.monotonic()
    assert sum(len(row.messages) for row in load(tmp_path / "big.parquet", Demonstration)) == 10_000
    # A quarter of a second on a slow core; decoding a row group for every row would take minutes.
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"records{suffix}"
    save([dialogue(1)], path)
    # The device that is always full stands where the unfinished file is written.
    (tmp_path / f".records{suffix}.part").symlink_to("/dev/full")
    with pytest.raises(ChatwrightError) as caught:
        save((dialogue(index) for index in range(2000)), path)
    assert str(caught.value) == (
        f"{path}: cannot write it (No space left on device); free some space or choose another place"
    )
    assert list(load(path, Demonstration)) == [dialogue(1)]
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def records():
        yield dialogue(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(records(), tmp_path / "half.parquet")
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    save([dialogue(1)], path)
    code = (
        "import sys\n"
        "from chatwright.data.records import Document, Part\n"
        "from chatwright.data.store import save\n"
        "def endless():\n"
        "    while True:\n"
        "        yield Document((Part.of_text('word ' * 1000),))\n"
        "        print('row', flush=True)\n"
        "save(endless(), sys.argv[1])\n"
    )
    source = Path(store.__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert writer.stdout.readline() == b"row\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert list(load(path, Demonstration)) == [dialogue(1)]
    save([dialogue(2)], path)
    assert list(load(path, Demonstration)) == [dialogue(2)]
    assert os.listdir(tmp_path) == [path.name]


def test_folders_are_made_and_bad_names_refused(tmp_path):
    save([dialogue(0)], tmp_path / "new" / "folder" / "a.parquet")
    with pytest.raises(ChatwrightError, match=r"a\.csv: cannot write \.csv; use \.parquet or \.jsonl"):
        save([dialogue(0)], tmp_path / "a.csv")
    with pytest.raises(ChatwrightError, match="cannot hold both a demonstration and a document; save two files"):
        save([dialogue(0), Document(())], tmp_path / "mixed.parquet")
    assert not (tmp_path / "mixed.parquet").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ChatwrightError, match=r"cannot write it \((Not a directory|File exists)\)"):
        save([dialogue(0)], tmp_path / "file" / "a.parquet")


def test_stored_records_become_the_kind_that_is_wanted(tmp_path):
    save([dialogue(5)], tmp_path / "demo.parquet")
    [prompt] = load(tmp_path / "demo.parquet", Prompt)
    assert prompt == Prompt(dialogue(5).messages[:1], "Red.")
    save([prompt], tmp_path / "prompts.parquet")
    assert list(load(tmp_path / "prompts.parquet", Demonstration)) == [dialogue(5)]
    save([Comparison(prompt.messages, ("a", "b"), (0, 1), "me", "pair")], tmp_path / "pairs.parquet")
    assert load(tmp_path / "pairs.parquet", Prompt)[0] == Prompt(prompt.messages)
    with pytest.raises(ChatwrightError) as caught:
        load(tmp_path / "pairs.parquet", Demonstration)[0]
    assert str(caught.value) == (
        f"{tmp_path}/pairs.parquet:1: row: is a comparison and not a demonstration; choose a file of demonstrations"
    )


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_a_cut_parquet_file_is_named(tmp_path, kept):
    path = tmp_path / "cut.parquet"
    save([dialogue(0)], path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ChatwrightError, match=r"cut\.parquet: not a Parquet file \(.*\); make it again"):
        load(path, Demonstration)


def test_one_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "damaged.parquet"
    noise = Part("image", media=os.urandom(10_000))
    save([Document((noise,))], path)
    content = bytearray(path.read_bytes())
    content[content.index(noise.media[5000:5100])] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChatwrightError, match=r"^\S*damaged\.parquet: damaged \(.*\); make it again$"):
        load(path, Document)[0]
