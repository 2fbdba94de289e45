"""The only place where a conversation becomes what a model reads: token ids, loss mask, pixels.

Works with any `transformers` tokenizer or processor that has a chat template. What is supervised is found from the
template itself, by the character where each assistant turn begins, so templates need no ``{% generation %}`` marks.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from chatwright.data.records import Document, Message, Part
from chatwright.data.rendered import TOKEN_TYPES, Rendered, collate
from chatwright.errors import ChatwrightError

PLACEHOLDERS = {"image": "image_token", "audio": "audio_token", "video": "video_token"}
SOFT_PROMPT = "<|soft_prompt_{}|>"
# What the assistant's own turns are while a template is asked what stands around them.
WORDS = Message.of("assistant", "words")
CALL = "<tool_call>"
# How Qwen 2.5 and its kin, whose form of a call is that of Hermes, are told about tools.
TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
# A conversation for a model that knows no chat: a question and its answer are a line; after the last the text ends.
PLAIN = (
    "{% for message in messages %}"
    "{% set answer = message['role'] == 'assistant' %}"
    "{% if answer %} {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else image_token }}"
    "{% endfor %}{% endif %}"
    "{% if answer %}{{ eos_token if loop.last else '\n' }}{% endif %}"
    "{% endfor %}"
)


class Renderer:
    """Renders for one processor (or plain tokenizer, where the model reads text only).

    Raises:
        ChatwrightError: the processor has no chat template or its template never ends an assistant turn.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.multimodal = isinstance(processor, ProcessorMixin)
        name = getattr(self.tokenizer, "name_or_path", "") or type(processor).__name__
        if not getattr(processor, "chat_template", None):
            raise ChatwrightError(f"{name}: no chat template; put one into chat_template.jinja of the checkpoint")
        if self.tokenizer.eos_token_id is None:
            raise ChatwrightError(f"{name}: the tokenizer has no end-of-text token; set eos_token")
        self.name = name
        self.tools: list[dict[str, Any]] | None = None  # what the chat template tells of them
        self.instructions = ""  # what the system message tells of them
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids, self.special_tokens = set(special), list(special.values())
        self.placeholders = {
            kind: self.tokenizer.convert_tokens_to_ids(getattr(processor, attribute))
            for kind, attribute in PLACEHOLDERS.items()
            if self.multimodal and getattr(processor, attribute, None)
        }
        given = processor(text=["a"]) if getattr(processor, "return_mm_token_type_ids", False) else ()
        self.token_types = next((name for name in TOKEN_TYPES if name in given), None)
        vocabulary = self.tokenizer.get_added_vocab()
        names = map(SOFT_PROMPT.format, range(len(vocabulary)))
        self.soft_prompt = [vocabulary[name] for name in names if name in vocabulary]
        # What stands in a prompt and is never said: places of media, and the learned vectors of prompt tuning.
        self.unsaid = {*self.placeholders.values(), *self.soft_prompt}
        self.end_id = self._end_of_turn()
        self.stop_ids = {self.tokenizer.eos_token_id, self.end_id}
        self.pad_id: int = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        )

    @classmethod
    def load(cls, folder: str | Path, plain: bool = False) -> "Renderer":
        """Open the processor saved in a checkpoint, or its tokenizer where it reads text only.

        Args:
            plain: render conversations as `PLAIN` says, whatever template the checkpoint has.

        Raises:
            ChatwrightError: there is none in ``folder`` that can be read, or it needs a package that is missing.
        """
        try:
            processor = AutoProcessor.from_pretrained(folder)
        except ImportError as error:
            missing = _first_line(error).split(". ")[0]
            raise ChatwrightError(f"{folder}: its processor cannot be opened: {missing}; install that") from error
        except (OSError, ValueError, TypeError, KeyError) as no_processor:
            try:
                processor = AutoTokenizer.from_pretrained(folder)
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise ChatwrightError(
                    f"{folder}: no processor or tokenizer that can be read ({_first_line(no_processor)}); "
                    "name a checkpoint folder that has one"
                ) from error
        if not isinstance(processor, ProcessorMixin | PreTrainedTokenizerBase):
            raise ChatwrightError(f"{folder}: {type(processor).__name__} reads no text; add a tokenizer")
        if plain:
            processor.chat_template = PLAIN
        return cls(processor)

    def with_soft_prompt(self, tokens: int) -> "Renderer":
        """A renderer that begins every conversation, before all else, with so many new tokens for prompt tuning.

        Its ``soft_prompt`` ends with their ids.
        """
        processor = copy.deepcopy(self.processor)
        tokenizer = getattr(processor, "tokenizer", processor)
        names = [SOFT_PROMPT.format(len(self.soft_prompt) + i) for i in range(tokens)]
        tokenizer.add_tokens(names, special_tokens=True)
        processor.chat_template = "".join(names) + processor.chat_template
        return Renderer(processor)

    def with_tools(self, schemas: Sequence[dict[str, Any]]) -> "Renderer":
        """A renderer whose conversations begin with what tools there are and how they are called.

        The chat template tells it, if it does so in the form of `CALL`; otherwise the system message does.

        Args:
            schemas: JSON schemas of functions, as `transformers.utils.get_json_schema` gives them.

        Raises:
            ChatwrightError: the tokenizer takes the marks of a call for special tokens, which a text cannot hold.
        """
        if self.plain(CALL) != CALL:
            raise ChatwrightError(
                f"{self.name}: {CALL} is a special token; make it a plain one to read calls in a text"
            )
        telling = copy.copy(self)
        telling.tools = list(schemas)
        if CALL not in telling._templates([telling._chat([Message.of("user", "a")])], generate=True)[0]:
            telling.tools = None
            telling.instructions = tool_instructions(schemas)
        return telling

    def demonstration(self, messages: Sequence[Message], last: bool = False) -> Rendered:
        """Render a conversation; every assistant turn with its end token is supervised, or the ``last`` alone.

        Raises:
            ChatwrightError: no assistant turn, or a template that supervises nothing.
        """
        messages = self._told(messages)
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not turns:
            raise ChatwrightError("a demonstration without an assistant turn teaches nothing; add the answer")
        turns = turns[-1:] if last else turns
        chat = self._chat(messages)
        text = self._templates([chat], generate=False)[0]
        starts = []
        for turn, prefix in zip(turns, self._templates([chat[:turn] for turn in turns], generate=True), strict=True):
            if not text.startswith(prefix):
                raise ChatwrightError(
                    f"{self.name}: the chat template rewrites earlier turns, so assistant turn {turn + 1} cannot be "
                    "found; use a template that only appends"
                )
            starts.append(len(prefix))
        ids, offsets = self._tokenize(text)
        mask = [False] * len(ids)
        for start in starts:
            for i, (begin, _) in enumerate(offsets):
                if begin >= start:
                    mask[i] = True
                    if ids[i] in self.stop_ids:
                        break
        if not any(mask):
            raise ChatwrightError(f"{self.name}: the chat template supervises nothing; check its assistant turns")
        return self._with_media(text, ids, mask, _media_of(messages))

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """Render a conversation up to where the assistant is to answer, or to go on; nothing is supervised.

        Where the assistant speaks last, that is the beginning of its answer. White space at the end of a beginning is
        left out: tokens bring the space before their word along. Let a beginning end with a whole word, as half a word
        is other tokens than those that the model has learned the word from.
        """
        messages = self._told(messages)
        begun = messages[-1].role == "assistant" if messages else False
        text = self._templates([self._chat(messages)], generate=not begun, go_on=begun)[0]
        text = text.rstrip() if begun else text
        ids, _ = self._tokenize(text)
        return replace(self._with_media(text, ids, [False] * len(ids), _media_of(messages)), begun=begun)

    def answer(self, text: str, finished: bool = True) -> list[int]:
        """The tokens of an answer as a model says it: with the end of its turn, unless it was cut off before."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*tokens, self.end_id] if finished else list(tokens)

    def answered(self, prompt: Rendered, tokens: Sequence[int], said: Sequence[bool] | None = None) -> Rendered:
        """A rendered prompt followed by the tokens of an answer, which are supervised: all, or those that are ``said``.

        Args:
            said: as long as ``tokens``, False where somebody else spoke in between.
        """
        mask = [True] * len(tokens) if said is None else list(said)
        return Rendered([*prompt.input_ids, *tokens], [False] * len(prompt.input_ids) + mask, prompt.media)

    def between(self, messages: Sequence[Message], reply: Message) -> list[int]:
        """The tokens between the end of the assistant's turn and the start of its next, ``reply`` standing there.

        They are what the template adds to the conversation. What the assistant said itself is not rendered again, so it
        stays, token by token, as it was said.

        Args:
            messages: of the conversation, up to the assistant's turn that has ended.
            reply: what comes after it, a text.

        Raises:
            ChatwrightError: the template has no place for the reply, or changes what stands before it.
        """
        asked = [WORDS if message.role == "assistant" else message for message in self._told(messages)]
        chats = [asked, [*asked, WORDS, reply], [*asked, WORDS, Message.of(reply.role, "")]]
        before, after, without = self._templates([self._chat(chat) for chat in chats], generate=True)
        end = self.tokenizer.convert_ids_to_tokens(self.end_id)
        turn, found, _ = after.removeprefix(before).partition(end)
        if not after.startswith(before) or WORDS.text not in turn or not found:
            raise ChatwrightError(
                f"{self.name}: the chat template rewrites earlier turns, so a conversation cannot go on where it was; "
                "use a template that only appends"
            )
        if after == without and reply.text.strip():
            raise ChatwrightError(f"{self.name}: the chat template leaves out what a {reply.role} says; add that role")
        start = len(before) + len(turn) + len(end)
        ids, offsets = self._tokenize(after)
        return [token for token, (begin, _) in zip(ids, offsets, strict=True) if begin >= start]

    def plain(self, text: str) -> str:
        """A text from outside as a model can read it and not obey it.

        A space breaks every special token, and half characters, which cannot be encoded, become question marks.
        """
        text = text.encode(errors="replace").decode()
        for mark in self.special_tokens:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def document(self, document: Document) -> Rendered:
        """Render raw text (and pictures) for pretraining: every text token and the end of text are supervised."""
        if not document.content:
            raise ChatwrightError("an empty document teaches nothing; remove it")
        self._check_text(document.content)
        text = "".join(self._mark(part.type) if part.type != "text" else part.text or "" for part in document.content)
        ids, _ = self._tokenize(text)
        ids.append(self.tokenizer.eos_token_id)
        mask = [i not in self.placeholders.values() for i in ids]
        return self._with_media(text + self.tokenizer.eos_token, ids, mask, [p for p in document.content if p.media])

    def collate(self, rows: Sequence[Rendered], side: Literal["right", "left"] = "right") -> dict[str, Any]:
        """`chatwright.data.rendered.collate` with this renderer's padding and placeholders.

        Where the model asks for them, the types [B, T] of tokens too: 0 for words, 1 for the places of pictures.
        """
        batch = collate(rows, self.pad_id, set(self.placeholders.values()), side)
        if self.token_types:
            batch[self.token_types] = torch.tensor(self.processor.create_mm_token_type_ids(batch["input_ids"].tolist()))
        return batch

    def decode(self, tokens: Sequence[int], prompt: Rendered | None = None) -> str:
        """The text of an answer, without special tokens and white space around it.

        Where the prompt is given and ends with the beginning of the answer, it is the text from there on, with the
        space between the two: `chatwright.data.records.answered` puts them together.
        """
        if prompt is None or not prompt.begun:
            return self.text(tokens).strip()
        # Some tokenizers drop the space before the first token, so that it has to follow another one.
        before = prompt.input_ids[-1:]
        whole = self.text([*before, *tokens])
        return whole[len(self.text(before)) :].rstrip()

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def _end_of_turn(self) -> int:
        example = self._chat([Message.of("user", "a"), Message.of("assistant", "b")])
        start = len(self._templates([example[:1]], generate=True)[0])
        ids, offsets = self._tokenize(self._templates([example], generate=False)[0])
        for token, (begin, _) in zip(ids, offsets, strict=True):
            if begin > start and token in self.special_ids:
                return token
        raise ChatwrightError(f"{self.name}: the chat template ends no assistant turn with a special token; add one")

    def _told(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation with what the system message has to tell of tools."""
        if not self.instructions:
            return messages
        if messages[0].role != "system":
            return [Message.of("system", self.instructions), *messages]
        content = (*messages[0].content, Part.of_text(f"\n\n{self.instructions}"))
        return [replace(messages[0], content=content), *messages[1:]]

    def _chat(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        for message in messages:
            self._check_text(message.content)
        return [{"role": message.role, "content": self._content(message)} for message in messages]

    def _templates(self, chats: list[list[dict[str, Any]]], generate: bool, go_on: bool = False) -> list[str]:
        try:
            return self.processor.apply_chat_template(
                chats,
                tools=self.tools,
                tokenize=False,
                add_generation_prompt=generate,
                continue_final_message=go_on,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in max(chats, key=len))
            raise ChatwrightError(
                f"{self.name}: the chat template refuses a conversation of {roles} ({error}); use one that takes it"
            ) from error
        except ValueError as error:
            if not go_on:
                raise
            raise ChatwrightError(
                f"{self.name}: the chat template cannot go on from the beginning of an answer "
                f"({_first_line(error)}); give that turn as one text"
            ) from error

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        if self.multimodal:
            return [
                {"type": "text", "text": part.text or ""} if part.type == "text" else {"type": part.type}
                for part in message.content
            ]
        for part in message.content:
            if part.type != "text":
                raise ChatwrightError(f"{self.name} reads text only and was given an {part.type}; use a model that can")
        return message.text

    def _check_text(self, parts: Sequence[Part]) -> None:
        for part in parts:
            for mark in self.special_tokens:
                if part.text and mark in part.text:
                    raise ChatwrightError(
                        f"the text holds the special token {mark}, which the model would obey; remove it"
                    )

    def _mark(self, kind: str) -> str:
        if kind not in self.placeholders:
            raise ChatwrightError(f"{self.name} reads no {kind}; use a model that can")
        return getattr(self.processor, PLACEHOLDERS[kind])

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), encoded["offset_mapping"]

    def _with_media(self, text: str, ids: list[int], mask: list[bool], parts: Sequence[Part]) -> Rendered:
        if not parts:
            return Rendered(ids, mask)
        for part in parts:
            if part.type != "image":
                raise ChatwrightError(f"{self.name} reads no {part.type} here; remove it from the conversation")
        marks = sum(i in self.placeholders.values() for i in ids)
        if marks != len(parts):
            raise ChatwrightError(
                f"{self.name}: {len(parts)} pictures but {marks} places for them in the text; "
                "the chat template must write one placeholder for each"
            )
        images = [part.image() for part in parts]
        encoded = self.processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
        long = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask", None)
        encoded.pop(self.token_types, None)  # `collate` finds them, for tokens that are added to the row too
        return Rendered(long, self._spread(mask, ids, long), dict(encoded))

    def _spread(self, mask: list[bool], short: list[int], long: list[int]) -> list[bool]:
        """Carry a mask over to where the processor has widened each placeholder into as many tokens as pixels need."""
        places = set(self.placeholders.values())
        wide = [False] * len(long)
        i = j = 0
        while i < len(short):
            if short[i] in places:
                following = next((k for k in range(i + 1, len(short)) if short[k] in places), len(short))
                rest = short[i + 1 : following]
                last = following == len(short)
                j = len(long) - len(rest) if last else _find(rest, long, j + 1)
                i += 1
            elif 0 <= j < len(long) and short[i] == long[j]:
                wide[j] = mask[i]
                i, j = i + 1, j + 1
            else:
                raise ChatwrightError(
                    f"{self.name}: the processor changes the text around pictures; it cannot be masked"
                )
        return wide


def tool_instructions(schemas: Sequence[dict[str, Any]]) -> str:
    """What the system message tells of tools where the chat template does not: their JSON schemas, and how to call."""
    return TOOLS.format("\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas))


def _media_of(messages: Sequence[Message]) -> list[Part]:
    return [part for message in messages for part in message.content if part.type != "text"]


def _find(part: list[int], whole: list[int], start: int) -> int:
    for place in range(start, len(whole) - len(part) + 1):
        if whole[place : place + len(part)] == part:
            return place
    return -1


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
