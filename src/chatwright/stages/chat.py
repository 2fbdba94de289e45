"""Talking with a model in the terminal."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from chatwright.data.records import Message, Part
from chatwright.data.render import Renderer
from chatwright.errors import ChatwrightError
from chatwright.evaluation.artifacts import assistant_of
from chatwright.generation.engine import Engine
from chatwright.generation.sampling import Sampling
from chatwright.models.load import checkpoint_of, load_model
from chatwright.models.precision import dtype_of
from chatwright.stages.base import Stage
from chatwright.training.loop import best_device

HELP = "/image FILE shows a picture with the next question, /new begins anew, /quit leaves, Ctrl-C stops an answer"


@dataclass
class Chat(Stage):
    """Talk with a model: a question a line, the answer appears as it is written.

    In the chat /image FILE shows a picture with the next question, /new begins anew and /quit leaves. Questions are
    read from standard input when that is not a terminal.

    Args:
        model: a checkpoint, an artifact, the folder of a run (of which the last assistant is meant), or the name of a
            pretrained model.
        image: a picture to begin with.
        temperature: 0 takes the most likely token each time.
        top_p: sample from the most likely tokens that hold this much probability.
        max_new_tokens: the longest answer.
        system: instructions that the model reads first.
        seed: of the sampling where the temperature is above 0.
        precision: fp32, bf16, int8 (on a CPU) or auto, as `serve` has it.
    """

    artifact: ClassVar[bool] = False

    model: str
    image: Path | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    system: str = ""
    seed: int = 0
    precision: str = "fp32"

    def run(self, out: Path) -> None:
        folder = checkpoint_of(assistant_of(self.model))
        model = load_model(folder, dtype_of(self.precision, best_device(), rows=1)).to(best_device())
        engine = Engine(model, Renderer.load(folder), batch_size=1, int8=self.precision == "int8")
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p, seed=self.seed)
        system = [Message.of("system", self.system)] if self.system else []
        Conversation(engine, sampling, system).hold(self.image)


class Conversation:
    """A chat in the terminal, turn after turn; what goes wrong in a turn is one line, and the chat goes on."""

    def __init__(self, engine: Engine, sampling: Sampling, system: list[Message]):
        self.engine = engine
        self.sampling = sampling
        self.system = system
        self.turns: list[Message] = []
        self.pictures: list[Part] = []
        self.person = sys.stdin.isatty()

    def hold(self, image: Path | None = None) -> None:
        """Talk until the questions end."""
        if self.person:
            # Importing it gives `input` a line editor; not every system has one.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401
            print(HELP)
        if image:
            self.look(str(image))
        while (line := self.listen()) is not None:
            command, _, rest = line.partition(" ")
            if command == "/quit":
                return
            if command == "/new":
                self.turns, self.pictures = [], []
            elif command == "/image":
                self.look(rest.strip())
            elif command.startswith("/"):
                print(HELP)
            elif line:
                self.answer(line)

    def listen(self) -> str | None:
        """The next line of the person, None at the end."""
        while True:
            try:
                line = input("you: " if self.person else "").strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                print("\n/quit leaves")
                continue
            if not self.person:
                print(f"you: {line}")
            return line

    def look(self, name: str) -> None:
        """Take a picture for the next question."""
        path = Path(name.strip("'\"")).expanduser()
        try:
            part = Part("image", media=path.read_bytes())
            size = part.image().size
        except OSError as error:
            print(f"{path}: {error.strerror}; give the path of a picture", file=sys.stderr)
        except ChatwrightError as error:
            print(f"{path}: {error}", file=sys.stderr)
        else:
            self.pictures.append(part)
            print(f"({path.name}, {size[0]} x {size[1]}, goes with the next question)")

    def answer(self, question: str) -> None:
        """Ask the model and show what it says; Ctrl-C ends the answer where it is."""
        message = Message("user", (*self.pictures, Part.of_text(question)))
        # A question that the model cannot read is dropped with its pictures, so that the next one is not spoiled.
        self.pictures = []
        said = ""
        try:
            messages = [*self.system, *self.turns, message]
            prompt, forgotten = self.engine.latest(messages, self.sampling.max_new_tokens)
            if forgotten:
                self.turns = self.turns[2 * forgotten :]
                print(f"(the conversation is long; {forgotten} of its first turns are forgotten)")
            stream = self.engine.stream(prompt, self.sampling)
            print("assistant: ", end="", flush=True)
            with contextlib.closing(stream), contextlib.suppress(KeyboardInterrupt):
                for piece in stream:
                    said += piece
                    print(piece, end="", flush=True)
        except ChatwrightError as error:
            print(error, file=sys.stderr)
            return
        print()
        self.turns += [message, Message.of("assistant", said)]
