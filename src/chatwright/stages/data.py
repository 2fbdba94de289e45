"""Public data becomes the records of the demo: texts, pictures, conversations, prompts, and what is held out."""

import io
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from chatwright.data import documents, instruct, questions, scenes
from chatwright.data.records import Demonstration, Document, Message, Part, Prompt, Record
from chatwright.data.sources import chatterbot, hsk, openmoji
from chatwright.data.store import load, save
from chatwright.errors import ChatwrightError
from chatwright.stages.base import Stage
from chatwright.stages.workers import each

KINDS = ("single", "several", "pair", "mixed")
DRAWING_PIXELS = 48


@dataclass
class Data(Stage):
    """Fetch the public sources and write the records that the other stages read.

    Writes ``drawings`` (pictures for the eye), ``documents`` and ``documents_heldout`` (text), ``captions`` (picture
    and text), ``presence`` and ``places`` (rounds of bare questions), ``demonstrations``, ``prompts`` (to practise on)
    and ``heldout`` (to be tested on), as Parquet, and a picture of every task in ``examples``; where scenes are
    ``described``, nothing that has a picture.

    Args:
        pictures: conversations about a picture, every other a quick round of questions.
        presence: rounds of bare questions about what is in a picture.
        places: rounds of bare questions about where things are, a fifth of them about what is there.
        captions: pictures with a caption.
        descriptions: descriptions of scenes without a picture, for pretraining.
        pages: pages of several described scenes, each with a question, for pretraining.
        words: dictionary entries for pretraining.
        translations: demonstrations of translating a word or sentence.
        prompts: prompts for annotation and reinforcement learning.
        evaluation: held-out prompts for each task, language and split.
        languages: of conversations; words and sentences are translated in any case.
        described: tell what is to be seen in words instead of showing it, for models that read text only.
        seed: of everything drawn at random.
    """

    pictures: int = 12000
    presence: int = 8000
    places: int = 8000
    captions: int = 12000
    descriptions: int = 20000
    pages: int = 0
    words: int = 4000
    translations: int = 2000
    prompts: int = 3000
    evaluation: int = 60
    languages: list[str] = field(default_factory=lambda: list(questions.LANGUAGES))
    described: bool = False
    seed: int = 0

    def run(self, out: Path) -> None:
        if not self.languages or not set(self.languages) <= set(questions.LANGUAGES):
            raise ChatwrightError(f"languages={self.languages}: name one or more of {', '.join(questions.LANGUAGES)}")
        # The longest come first, so that no process is left with one of them at the end.
        files = {
            "demonstrations": self._demonstrations,
            "places": self._places,
            "presence": self._presence,
            "captions": self._captions,
            "documents": self._documents,
            "heldout": self._heldout,
            "prompts": self._prompts,
            "drawings": _drawings,
            "documents_heldout": self._documents_heldout,
        }
        with_pictures = ("places", "presence", "captions", "drawings")
        made = [(name, make) for name, make in files.items() if not self.described or name not in with_pictures]
        for _ in each(partial(_write, out), made, "files"):
            pass
        if not self.described:
            _save_examples(load(out / "heldout.parquet", Prompt), out / "examples")

    def _rng(self, purpose: str) -> random.Random:
        """Each file has its own random numbers, so that changing the size of one leaves the others as they are."""
        return random.Random(f"{self.seed} {purpose}")

    @property
    def _show(self) -> instruct.Show:
        return instruct.described if self.described else instruct.picture

    def _language(self, index: int) -> str:
        """The languages in turn."""
        return self.languages[index % len(self.languages)]

    def _documents(self) -> list[Document]:
        pool = scenes.trained()
        sentences, _ = documents.sentence_documents(self._rng("sentences"))
        dialogues, _ = documents.dialogue_documents(self.languages)
        texts = documents.word_documents(self.words, self._rng("words")) + sentences + dialogues
        texts += documents.concept_documents()
        tell = questions.description if self.described else documents.sketch
        texts += documents.scene_documents(self.descriptions, self._rng("descriptions"), pool, self.languages, tell)
        texts += documents.page_documents(self.pages, self._rng("pages"), pool, self.languages)
        self._rng("order").shuffle(texts)
        return texts

    def _documents_heldout(self) -> list[Document]:
        _, sentences = documents.sentence_documents(self._rng("sentences"))
        _, dialogues = documents.dialogue_documents(self.languages)
        return sentences + dialogues

    def _captions(self) -> list[Document]:
        return documents.caption_documents(self.captions, self._rng("captions"), scenes.trained())

    def _demonstrations(self) -> list[Demonstration]:
        rng, pool = self._rng("demonstrations"), scenes.trained()
        found = []
        for index in range(self.pictures):
            language = self._language(index // 2)
            if index % 2 and self.described:
                scene = scenes.compose(rng, pool, rng.choices(KINDS, (5, 30, 25, 40))[0])
                found.append(instruct.conversation(scene, rng, language, pool, quick=True, show=self._show))
                continue
            if index % 2:
                found.append(_round(instruct.EVERYTHING, rng, language, pool))
                continue
            scene = scenes.compose(rng, pool, rng.choices(KINDS, (35, 15, 20, 30))[0])
            # Some with a single question, as people begin; the others share a picture among several.
            if rng.random() < 0.15:
                question = _any_question(scene, rng, language, pool)
                found.append(instruct.as_demonstration(question, rng, scene, self._show))
            else:
                found.append(instruct.conversation(scene, rng, language, pool, show=self._show))
        found += self._translations(self._rng("translations"))
        found += _small_talk(self.languages)
        rng.shuffle(found)
        return found

    def _presence(self) -> Iterator[Demonstration]:
        rng, pool = self._rng("presence"), scenes.trained()
        for index in range(self.presence):
            yield instruct.one_round(rng, self._language(index), pool, instruct.ROUNDS["presence"])

    def _places(self) -> Iterator[Demonstration]:
        rng, pool = self._rng("places"), scenes.trained()
        for index in range(self.places):
            yield _round(instruct.PLACES, rng, self._language(index), pool)

    def _translations(self, rng: random.Random) -> Iterator[Demonstration]:
        words = [word for word in _words() if not documents.is_heldout_word(word[1])]
        pairs = [pair for pair in hsk.sentences() if not documents.is_heldout_text(pair[0]) and len(pair[0]) <= 12]
        for index in range(self.translations):
            chinese, english = rng.choice(pairs) if index % 5 == 0 else rng.choice(words)[::-1]
            yield instruct.as_demonstration(questions.ask_word(english, chinese, rng, self._language(index)), rng)

    def _prompts(self) -> Iterator[Prompt]:
        rng, pool = self._rng("prompts"), scenes.trained()
        words = [word for word in _words() if not documents.is_heldout_word(word[1])]
        for index in range(self.prompts):
            language = self._language(index)
            if index % 10 >= 8:
                yield instruct.as_prompt(questions.ask_word(*rng.choice(words), rng, language), "train")
            else:
                scene = scenes.compose(rng, pool)
                yield instruct.as_prompt(_any_question(scene, rng, language, pool), "train", scene, self._show)

    def _heldout(self) -> Iterator[Prompt]:
        """Every split of every task in every language."""
        tasks = [task for task in questions.PICTURE_TASKS if task != questions.HELDOUT_TASK]
        plan = [("composition", task) for task in tasks] + [("phrasing", task) for task in tasks]
        plan += [("concept", task) for task in ("naming", "category", "counting")]
        plan += [("task", questions.HELDOUT_TASK)]
        for split, task in plan:
            for language in self.languages:
                rng = self._rng(f"{split} {task} {language}")
                some = scenes.unseen() if split == "concept" else scenes.trained()
                for index in range(self.evaluation):
                    question, scene = _test(split, task, language, index, rng, some)
                    yield instruct.as_prompt(question, split, scene, self._show)
        words = [word for word in _words() if documents.is_heldout_word(word[1])]
        for split in ("word", "phrasing"):
            for language in self.languages:
                rng = self._rng(f"{split} translation {language}")
                for _ in range(2 * self.evaluation):
                    yield _translation_test(words, rng, language, split)


def _test(
    split: str, task: str, language: str, index: int, rng: random.Random, pool: Sequence[scenes.Concept]
) -> tuple[questions.Question, scenes.Scene]:
    """A question for evaluation; the numbers to be counted come in turn."""
    while True:
        if task == "counting":
            number = index % 5 + 1
            kind = rng.choice({1: ("single", "pair", "mixed"), 5: ("several",)}.get(number, ("several", "mixed")))
        else:
            kind = {"naming": "single", "category": "single", "relation": "pair", questions.HELDOUT_TASK: "pair"}.get(
                task, rng.choice(KINDS)
            )
        scene = scenes.compose(rng, pool, kind, heldout=None if split == "concept" else True)
        question = questions.ask(task, scene, rng, language, pool, heldout_phrasing=split == "phrasing")
        if question is None or (task == "counting" and question.reference != question.choices[number - 1]):
            continue
        return question, scene


def _translation_test(words: list[tuple[str, str]], rng: random.Random, language: str, split: str) -> Prompt:
    """Which of four words is the translation, by what the model finds likeliest."""
    right, *wrong = rng.sample(words, 4)
    prompt = instruct.as_prompt(questions.ask_word(*right, rng, language, split == "phrasing"), split)
    side = right.index(prompt.reference or "")
    choices = [right[side], *(word[side] for word in wrong)]
    rng.shuffle(choices)
    return replace(prompt, choices=tuple(choices), score="choice")


def _write(out: Path, file: tuple[str, Callable[[], Iterable[Record]]]) -> None:
    name, make = file
    save(make(), out / f"{name}.parquet")


def _save_examples(prompts: Sequence[Prompt], folder: Path) -> None:
    """The first picture of every task as a file, to show to the assistant in a chat."""
    folder.mkdir(exist_ok=True)
    for prompt in reversed(prompts):
        picture = prompt.messages[0].content[0]
        if prompt.meta["split"] == "composition" and picture.media:
            (folder / f"{prompt.meta['task']}.png").write_bytes(picture.media)


def _drawings() -> Iterator[Document]:
    """Transparent PNGs, as the eye's training puts its own grounds behind them."""
    for character, path in scenes.training_drawings().items():
        buffer = io.BytesIO()
        openmoji.render(path, DRAWING_PIXELS).save(buffer, format="PNG")
        yield Document((Part("image", media=buffer.getvalue()),), {"character": character, "source": "openmoji"})


def _round(
    mixture: Mapping[str, int], rng: random.Random, language: str, pool: Sequence[scenes.Concept]
) -> Demonstration:
    """One of instruct.ROUNDS, drawn by weight."""
    (name,) = rng.choices(list(mixture), list(mixture.values()))
    return instruct.one_round(rng, language, pool, instruct.ROUNDS[name])


def _any_question(
    scene: scenes.Scene, rng: random.Random, language: str, pool: Sequence[scenes.Concept]
) -> questions.Question:
    """A question of a task drawn at random from those that the scene admits, the held-out task excepted."""
    tasks = [task for task in questions.PICTURE_TASKS if task != questions.HELDOUT_TASK] + ["yes_no_kind"]
    rng.shuffle(tasks)
    # Captions suit every scene and would be drawn too often.
    tasks.sort(key=lambda task: task == "caption" and rng.random() < 0.6)
    found = (questions.ask(task, scene, rng, language, pool) for task in tasks)
    return next(question for question in found if question is not None)


def _words() -> list[tuple[str, str]]:
    """(English, Chinese) words to translate: the concepts, and the easiest dictionary words with a short gloss."""
    pairs = [(concept.english, concept.chinese) for concept in scenes.concepts().values()]
    pairs += [(entry.senses[0], entry.simplified) for entry in documents.useful_words()[:600]]
    return list({chinese: (english, chinese) for english, chinese in pairs}.values())


def _small_talk(languages: Sequence[str]) -> list[Demonstration]:
    found = []
    for language in languages:
        for turns in chatterbot.dialogues(language):
            turns = turns[: len(turns) // 2 * 2][:6]
            if not documents.is_heldout_text(turns[0]) and sum(map(len, turns)) <= 300:
                roles = ("user", "assistant")
                messages = tuple(Message.of(roles[index % 2], turn) for index, turn in enumerate(turns))  # type: ignore[arg-type]
                found.append(Demonstration(messages, {"language": language, "tasks": ["chat"], "split": "train"}))
    return found
