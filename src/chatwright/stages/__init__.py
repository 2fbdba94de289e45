"""The stages by the name of their command."""

from chatwright.stages.align import Align
from chatwright.stages.annotate import Annotate
from chatwright.stages.base import Stage
from chatwright.stages.bestofn import BestOfN
from chatwright.stages.chat import Chat
from chatwright.stages.data import Data
from chatwright.stages.evaluate import Evaluate
from chatwright.stages.feedback import FeedbackCopy, FeedbackExport
from chatwright.stages.instructions import Instructions
from chatwright.stages.prefer import Prefer
from chatwright.stages.pretrain import Pretrain
from chatwright.stages.report import Report
from chatwright.stages.reward import Reward
from chatwright.stages.rl import RL
from chatwright.stages.serve import Serve
from chatwright.stages.sft import SFT
from chatwright.stages.tokenizer import Tokenizer
from chatwright.stages.vision import Vision

STAGES: dict[str, type[Stage]] = {
    stage.name(): stage
    for stage in (
        Data,
        Instructions,
        Tokenizer,
        Pretrain,
        Vision,
        Align,
        SFT,
        Annotate,
        Reward,
        Prefer,
        BestOfN,
        RL,
        Evaluate,
        Report,
        Chat,
        Serve,
        FeedbackExport,
        FeedbackCopy,
    )
}
