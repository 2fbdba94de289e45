import io
import signal
import sys

import pytest

from chatwright.data.records import Message
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.stages.chat import Chat, Conversation


@pytest.fixture
def image(tmp_path, conversations):
    path = tmp_path / "a picture.png"
    path.write_bytes(conversations[1][0].content[0].media)
    return path


@pytest.fixture
def say(monkeypatch, checkpoint, tmp_path):
    """Runs a chat of the given lines."""

    def run(*lines, **settings):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        Chat(str(checkpoint), max_new_tokens=8, **settings).run(tmp_path)

    return run


def answers(engine, *questions, image=None):
    """What the engine answers to a conversation, turn after turn."""
    turns = []
    texts = []
    for number, question in enumerate(questions):
        turns.append(Message.of("user", question, *([image] if image and number == 0 else [])))
        texts.append(engine.generate([turns], Sampling(max_new_tokens=8, temperature=0))[0][0].text)
        turns.append(Message.of("assistant", texts[-1]))
    return texts


@pytest.fixture
def engine(assistant, renderer):
    return Engine(assistant, renderer)


def test_it_answers_line_by_line_and_remembers(say, engine, capsys):
    say("How many dogs?", "", "and apples?")
    shown = capsys.readouterr().out
    first, second = answers(engine, "How many dogs?", "and apples?")
    assert shown == f"you: How many dogs?\nassistant: {first}\nyou: \nyou: and apples?\nassistant: {second}\n"


def test_new_forgets_and_quit_leaves(say, engine, capsys):
    say("How many dogs?", "/new", "and apples?", "/quit", "never asked")
    shown = capsys.readouterr().out
    assert f"assistant: {answers(engine, 'and apples?')[0]}\n" in shown
    assert "never asked" not in shown


@pytest.mark.parametrize("flag", [True, False])
def test_it_sees_pictures(flag, say, engine, image, conversations, capsys):
    picture = conversations[1][0].content[0].image()
    if flag:
        say("What is this?", "and this?", image=image)
    else:
        say(f"/image {image}", "What is this?", "and this?")
    shown = capsys.readouterr().out
    first, second = answers(engine, "What is this?", "and this?", image=picture)
    assert first != answers(engine, "What is this?")[0]
    assert f"assistant: {first}\n" in shown and f"assistant: {second}\n" in shown


def test_a_bad_picture_is_one_line_and_the_chat_goes_on(say, engine, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    say(f"/image {tmp_path / 'absent.png'}", f"/image {tmp_path / 'text.png'}", "How many dogs?")
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 2
    assert "absent.png: No such file" in lines[0] and "text.png: unreadable image" in lines[1]
    assert f"assistant: {answers(engine, 'How many dogs?')[0]}\n" in output.out


def test_a_question_that_cannot_be_read_is_dropped(say, engine, capsys):
    say("dog " * 200, "<|end|>", "How many dogs?")
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 2
    assert "context is 128" in output.err and "special token" in output.err
    assert f"assistant: {answers(engine, 'How many dogs?')[0]}\n" in output.out


def test_an_unknown_command_shows_help(say, capsys):
    say("/help")
    assert "/image FILE" in capsys.readouterr().out


def test_a_long_chat_forgets_its_first_turns(say, capsys):
    say(*["How many dogs are there?"] * 8)
    output = capsys.readouterr()
    assert "forgotten" in output.out and not output.err
    assert output.out.count("assistant: ") == 8


def test_an_interrupt_stops_the_answer_and_not_the_chat(engine, monkeypatch, capsys):
    """A real SIGINT while the answer is being written."""

    class Interrupting(io.StringIO):
        def write(self, text):
            length = super().write(text)
            if self.getvalue().count("assistant: ") == 1 and self.getvalue().endswith(text) and len(text) > 0:
                self.pieces = getattr(self, "pieces", 0) + 1
                if self.pieces == 3:
                    signal.raise_signal(signal.SIGINT)
            return length

    screen = Interrupting()
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many dogs?\nand apples?\n"))
    monkeypatch.setattr(sys, "stdout", screen)
    chat = Conversation(engine, Sampling(max_new_tokens=20, temperature=0), [])
    chat.hold()
    whole = engine.generate([[Message.of("user", "How many dogs?")]], chat.sampling)[0][0].text
    assert len(chat.turns) == 4
    assert whole.startswith(chat.turns[1].text) and len(chat.turns[1].text) < len(whole)
    assert screen.getvalue().count("assistant: ") == 2
