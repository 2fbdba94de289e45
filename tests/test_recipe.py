"""Recipes: every mistake is found before anything runs, finished stages are skipped, changed ones are made anew."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from chatwright import recipe
from chatwright.cli import main
from chatwright.data.records import Document, Part
from chatwright.data.store import save
from chatwright.errors import ChatwrightError
from chatwright.files import locked
from chatwright.stages.base import Stage, execute

RECIPE = """
out: {out}
stages:
  tokenizer: {{documents: {documents}, vocab_size: 300}}
  language: {{stage: pretrain, tokenizer: $tokenizer, documents: {documents}, width: 16, depth: 1, heads: 2,
              batch_size: 4, epochs: 1, training: {{precision: fp32}}}}
"""


@pytest.fixture
def written(tmp_path) -> Path:
    documents = tmp_path / "documents.jsonl"
    save([Document((Part.of_text(f"text number {i}, 第{i}个"),)) for i in range(12)], documents)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(out=tmp_path / "run", documents=documents))
    return path


def test_a_recipe_runs_once_and_then_has_nothing_to_do(written, tmp_path, capsys):
    assert main(["run", str(written)]) == 0
    weights = tmp_path / "run/language/model/model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert (tmp_path / "run/language/DONE").exists() and (tmp_path / "run/language/card.md").exists()
    capsys.readouterr()
    assert main(["run", str(written)]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    assert weights.stat().st_mtime_ns == stamp


def test_a_changed_setting_remakes_the_stage_and_what_follows_and_keeps_the_old(written, tmp_path):
    assert main(["run", str(written)]) == 0
    written.write_text(written.read_text().replace("vocab_size: 300", "vocab_size: 310"))
    assert main(["run", str(written)]) == 0
    assert (tmp_path / "run/tokenizer.previous/DONE").exists()
    assert (tmp_path / "run/language.previous/DONE").exists()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("stage: pretrain", "stage: pretrian", "unknown stage 'pretrian'; did you mean 'pretrain'?"),
        ("vocab_size", "vocab_sise", "unknown field 'vocab_sise'; did you mean 'vocab_size'?"),
        ("$tokenizer", "$tokeniser", r"\$tokeniser is no stage before this one; did you mean 'tokenizer'?"),
        ("width: 16", "width: wide", "width"),
        ("precision: fp32", "precission: fp32", "precission"),
        ("out:", "output:", "unknown key 'output'"),
        ("stages:", "stages: [", "not YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line_and_start_nothing(written, tmp_path, capsys, before, after, words):
    written.write_text(written.read_text().replace(before, after, 1))
    with pytest.raises(ChatwrightError, match=words.replace("?", r"\?")) as caught:
        recipe.read(written)
    assert "\n" not in str(caught.value)
    assert main(["run", str(written)]) == 1
    assert capsys.readouterr().err.startswith("chatwright: ")
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_named(tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_missing_data_is_named(tmp_path, capsys):
    assert main(["tokenizer", "--documents", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "none.jsonl" in error and error.count("\n") == 1


def test_two_runs_in_one_folder(written, tmp_path, capsys):
    with locked(tmp_path / "run"):
        assert main(["run", str(written)]) == 1
    assert "another run is at work here" in capsys.readouterr().err


def test_a_damaged_input_is_found_before_it_is_used(written, tmp_path, capsys):
    assert main(["run", str(written)]) == 0
    model = tmp_path / "run/tokenizer/model/tokenizer.json"
    model.write_text(model.read_text() + " ")
    written.write_text(written.read_text().replace("depth: 1", "depth: 2"))
    assert main(["run", str(written)]) == 1
    assert "tokenizer.json: damaged" in capsys.readouterr().err
    model.unlink()
    assert main(["run", str(written)]) == 1
    assert "tokenizer.json: missing" in capsys.readouterr().err


@dataclass
class Fills(Stage):
    """Writes until the disk is full."""

    def run(self, out: Path) -> None:
        with Path("/dev/full").open("w") as full:
            full.write("x" * 100_000)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recipe.STAGES, "fills", Fills)
    assert main(["fills", "--out", str(tmp_path / "out")]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "out/DONE").exists()


def test_a_stage_without_changes_is_not_run_again(tmp_path):
    @dataclass
    class Counts(Stage):
        number: int = 1

        def run(self, out: Path) -> None:
            (out / "runs").open("a").write("x")

    assert execute(Counts(), tmp_path / "out") is True
    assert execute(Counts(), tmp_path / "out") is False
    assert (tmp_path / "out/runs").read_text() == "x"
