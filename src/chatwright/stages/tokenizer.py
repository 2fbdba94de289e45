"""A byte-level BPE vocabulary learned from the documents, with the special tokens of chat and pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as Vocabulary
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatwright.data.records import Document
from chatwright.data.store import load
from chatwright.models import build
from chatwright.stages.base import Stage
from chatwright.training.progress import Bar


@dataclass
class Tokenizer(Stage):
    """Learn a byte-level BPE vocabulary (Sennrich et al., https://arxiv.org/abs/1508.07909; bytes as in GPT-2).

    Args:
        documents: records to learn from.
        vocab_size: tokens, the 256 bytes and the special ones included.
    """

    documents: Path
    vocab_size: int = 4096

    def run(self, out: Path) -> None:
        documents = load(self.documents, Document)
        vocabulary = Vocabulary(models.BPE())
        vocabulary.normalizer = normalizers.NFC()
        vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        vocabulary.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=build.SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with Bar("tokenizer", len(documents)) as bar:

            def texts() -> Iterator[str]:
                for document in documents:
                    yield document.text
                    bar.advance()

            vocabulary.train_from_iterator(texts(), trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=vocabulary,
            eos_token=build.END_OF_TEXT,
            pad_token=build.PAD,
            extra_special_tokens={"image_token": build.IMAGE},
        )
        tokenizer.chat_template = build.CHAT_TEMPLATE
        tokenizer.save_pretrained(out / "model")
