"""The stages by the name of their command."""

from chatwright.stages.align import Align
from chatwright.stages.base import Stage
from chatwright.stages.chat import Chat
from chatwright.stages.evaluate import Evaluate
from chatwright.stages.pretrain import Pretrain
from chatwright.stages.sft import SFT
from chatwright.stages.tokenizer import Tokenizer
from chatwright.stages.vision import Vision

STAGES: dict[str, type[Stage]] = {
    stage.name(): stage for stage in (Tokenizer, Pretrain, Vision, Align, SFT, Evaluate, Chat)
}
