"""Tiny real parts that many tests share: a tokenizer, a processor, a language model and an assistant that sees."""

import os
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatwright.data.records import Message
from chatwright.data.render import Renderer
from chatwright.models import build
from chatwright.models.outputs import token_logprobs

# Tests run beside each other, a process on each core; what they start takes this over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

pytest_plugins = ["tests.databases", "tests.mrope"]

# As the command line does, so that tests see only what the product prints.
transformers.utils.logging.disable_progress_bar()

LONGEST = "test_smollm2.py"

LINES = [
    "What is in the picture? There is a red apple and a green pear.",
    "How many dogs are there? There are three dogs.",
    "图片里有什么？有一个红苹果和一只狗。",
    "Translate into Chinese: dog. 狗",
]
CONTEXT = 128


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was not tested; see tests/databases.py."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "PostgreSQL" in str(report.longrepr)]
    if skipped:
        line = f"POSTGRESQL WAS NOT TESTED ({len(skipped)} tests skipped): apt-get install postgresql, and run again"
        terminalreporter.write_line(line, red=True, bold=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no core waits for another at the end."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C works in tests also where the suite runs in the background, with SIGINT ignored from its start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few lines, English and Chinese, with a chat template."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=build.SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    learned.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned,
        pad_token=build.PAD,
        eos_token=build.END_OF_TEXT,
        additional_special_tokens=[
            token for token in build.SPECIAL_TOKENS if token not in (build.PAD, build.END_OF_TEXT)
        ],
        extra_special_tokens={"image_token": build.IMAGE},
        chat_template=build.CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def renderer(tokenizer) -> Renderer:
    """Renders text and pictures of 32 x 32 pixels, 4 tokens a picture."""
    return Renderer(build.processor(tokenizer, pixels=32, stride=16))


@pytest.fixture
def language_model(tokenizer):
    """An untrained Qwen3 of two layers. Its weights are wide, so that no next-token distribution is flat."""
    torch.manual_seed(0)
    model = build.decoder(tokenizer, width=32, depth=2, heads=4, length=CONTEXT)
    spread(model)
    return model.eval()


@pytest.fixture
def assistant(renderer, language_model):
    """An untrained FastVlm: a residual eye of three stages in front of the language model."""
    torch.manual_seed(1)
    model = build.assistant(build.eye([8, 16, 32]), language_model, renderer.processor)
    spread(model.model.multi_modal_projector)
    return model.eval()


@pytest.fixture
def talker(assistant, renderer, conversations):
    """The assistant, having learned no more than to end its turns soon, sometimes with an end of text."""
    learned = torch.optim.Adam(assistant.model.language_model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    prompts = [renderer.prompt(turns) for turns in conversations for _ in range(3)]
    for _ in range(30):
        rows = []
        for number, prompt in enumerate(prompts):
            end = renderer.end_id if number % 5 else renderer.tokenizer.eos_token_id
            words = torch.randint(10, 320, (int(torch.randint(0, 6, (), generator=generator)),), generator=generator)
            rows.append(renderer.answered(prompt, [*words.tolist(), end]))
        batch = renderer.collate(rows)
        loss = -token_logprobs(assistant, batch)[0].sum() / batch["loss_mask"].sum()
        learned.zero_grad()
        loss.backward()
        learned.step()
    return assistant


@pytest.fixture
def checkpoint(tmp_path, assistant, renderer) -> Path:
    """The assistant, saved with its processor."""
    folder = tmp_path / "assistant"
    assistant.save_pretrained(folder)
    renderer.save(folder)
    return folder


@pytest.fixture
def conversations() -> list[list[Message]]:
    """Prompts of several lengths, with no picture, one and two."""
    return [
        [Message.of("user", "How many dogs?")],
        [Message.of("user", "What is in the picture?", picture(1))],
        [Message.of("user", "图片里有什么？", picture(2))],
        [Message.of("user", "dog"), Message.of("assistant", "狗"), Message.of("user", "apple, a red one, and a pear?")],
        [Message.of("user", "What?", picture(3), picture(4))],
    ]


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def spread(model: torch.nn.Module) -> None:
    """Widen the matrices of an untrained model."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
