"""Conservative DPO: some of the judgements are taken to be the wrong way round.

Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", https://ericmitchell.ai/cdpo.pdf,
for labels that are flipped with a known probability. Annotators who agree in 73% of pairs (InstructGPT) are right in
about 84%; the default of 0.1 supposes better ones.
"""

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatwright.data.render import Renderer
from chatwright.objectives.feedback.dpo import DPO
from chatwright.objectives.feedback.preference import Responses


class ConservativeDPO(DPO):
    """DPO on judgements that are wrong with probability ``flipped``; it stops at a finite margin.

    Args:
        beta: as for DPO. flipped: between 0 (then it is DPO) and 0.5.
    """

    def __init__(self, policy: PreTrainedModel, renderer: Renderer, beta: float = 0.1, flipped: float = 0.1) -> None:
        super().__init__(policy, renderer, beta)
        self.flipped = flipped

    def pair_losses(self, margins: Tensor, said: Responses, better: Tensor) -> Tensor:
        return -(1 - self.flipped) * F.logsigmoid(margins) - self.flipped * F.logsigmoid(-margins)
