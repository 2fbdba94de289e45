"""`chatwright feedback export` and `copy` as a user runs them; what is exported trains tiny real models."""

import json
from uuid import UUID, uuid4

import pytest
from tests.conftest import picture
from tests.feedback.people import ORIGIN, person, talk, text

from chatwright.cli import main
from chatwright.data.records import Comparison, Demonstration, Part
from chatwright.data.store import load
from chatwright.feedback import accounts, conversations, evaluations
from chatwright.feedback.conversations import Content
from chatwright.feedback.database import Database

SMALL = "--batch_size 4 --epochs 1 --training.precision fp32"


@pytest.fixture
def chats(tmp_path):
    """Sixteen conversations about pictures, judged in every way."""
    database = Database(str(tmp_path / "chat.db"))
    ann = person(database, "ann", consent=True)
    with database.writing(ann) as session:
        for i in range(16):
            file = conversations.upload(session, Part.of_image(picture(i)).media, "image/png")
            conversation, (_, hi) = talk(session, f"hello {i}", "hi", key=UUID(int=i))
            content = [Content("image", sha256=file.sha256), Content("text", "What?")]
            asked = conversations.add(session, conversation, uuid4(), hi, "user", content).id
            dog, cat = (
                conversations.add(session, conversation, uuid4(), asked, "assistant", text(words), ORIGIN).id
                for words in ("a dog", "a cat")
            )
            evaluations.thumb(session, dog, bool(i % 2))
            evaluations.correct(session, cat, "a red apple")
            evaluations.compare(session, dog, cat, "neither" if i == 3 else "first")
    yield tmp_path / "chat.db", ann
    database.close()


def test_feedback_goes_through_sft_prefer_reward_and_rl(chats, checkpoint, tmp_path, capsys):
    out = tmp_path / "feedback"
    assert main(["feedback", "export", "--database", str(chats[0]), "--heldout", "0.3", "--out", str(out)]) == 0
    counts = json.loads((out / "counts.json").read_text())
    assert counts["demonstrations"] + counts["demonstrations_heldout"] == 16 and counts["comparisons_heldout"] > 0
    assert counts["prompts"] == 2 * counts["comparisons"]
    taught = load(out / "comparisons.parquet", Comparison)
    fresh = load(out / "comparisons_heldout.parquet", Comparison)
    assert not {one.meta["conversation"] for one in taught} & {one.meta["conversation"] for one in fresh}
    (tmp_path / "short.py").write_text("def short(prompt, text):\n    return -len(text)\n")
    for name, flags in {
        "sft": f"--demonstrations {out}/demonstrations.parquet",
        "prefer": f"--comparisons {out}/comparisons.parquet",
        "prefer --method kto": f"--comparisons {out}/labelled.parquet",
        "reward": f"--comparisons {out}/comparisons.parquet --heldout {out}/comparisons_heldout.parquet",
    }.items():
        command = f"{name} --model {checkpoint} {flags} --out {tmp_path}/{name[-3:]} {SMALL}"
        assert main(command.split()) == 0, capsys.readouterr().err
    command = f"rl --model {checkpoint} --prompts {out}/prompts.parquet --verifier {tmp_path}/short.py:short"
    command += f" --method rloo --iterations 1 --rollouts 8 --responses 2 --max_new_tokens 4 --out {tmp_path}/rl"
    assert main(command.split()) == 0, capsys.readouterr().err


def test_a_correction_teaches_itself_and_not_the_answers_before_it(chats, tmp_path, renderer):
    main(["feedback", "export", "--database", str(chats[0]), "--out", str(tmp_path / "feedback")])
    demonstration = load(tmp_path / "feedback/demonstrations.parquet", Demonstration)[0]
    assert [turn.text for turn in demonstration.messages][1::2] == ["hi", "a red apple"]
    row = renderer.demonstration(demonstration.messages, last=True)
    said = [token for token, wanted in zip(row.input_ids, row.loss_mask, strict=True) if wanted]
    assert renderer.decode(said) == "a red apple"


def test_an_export_is_made_again_when_somebody_has_changed_something(chats, tmp_path, capsys):
    path, ann = chats
    command = ["feedback", "export", "--database", str(path), "--out", str(tmp_path / "feedback")]
    assert main(command) == 0 and "16 demonstrations" in capsys.readouterr().out
    recipe = tmp_path / "recipe.yaml"  # The same by a recipe is done already.
    recipe.write_text(f"out: {tmp_path}\nstages:\n  feedback: {{stage: feedback export, database: {path}}}\n")
    assert main(["run", str(recipe)]) == 0 and "finished before" in capsys.readouterr().out
    database = Database(str(path))
    with database.writing(ann) as session:
        accounts.set_consent(session, False)
    assert main(command) == 1 and "ask people to agree" in capsys.readouterr().err
    database.close()


def test_copying_and_mistakes(chats, tmp_path, capsys):
    path, ann = chats
    new = str(tmp_path / "new.db")
    assert main(["feedback", "copy", str(path), new]) == 0
    assert "rows copied" in capsys.readouterr().out
    with Database(new).reading(ann) as session:
        assert len(conversations.listed(session)) == 16
    for command, words in [
        (["copy", str(path), new], "not empty"),
        (["copy", str(tmp_path / "none.db"), new], "no such database"),
        (["export", "--database", str(tmp_path / "none.db")], "no such database"),
        (["export", "--database", str(path), "--heldout", "2", "--out", str(tmp_path / "x")], "less than 1"),
    ]:
        assert main(["feedback", *command]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
