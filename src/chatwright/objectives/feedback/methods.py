"""The ways of learning from preferences, by name."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from chatwright.errors import ChatwrightError
from chatwright.objectives.base import Objective
from chatwright.objectives.feedback.bradley_terry import BradleyTerry
from chatwright.objectives.feedback.conservative_dpo import ConservativeDPO
from chatwright.objectives.feedback.dapo import DAPO
from chatwright.objectives.feedback.dpo import DPO
from chatwright.objectives.feedback.dr_grpo import DrGRPO
from chatwright.objectives.feedback.grpo import GRPO
from chatwright.objectives.feedback.ipo import IPO
from chatwright.objectives.feedback.kto import KTO
from chatwright.objectives.feedback.likert import Likert
from chatwright.objectives.feedback.margin import Margin
from chatwright.objectives.feedback.online_dpo import OnlineDPO
from chatwright.objectives.feedback.orpo import ORPO
from chatwright.objectives.feedback.policy_gradient import PolicyGradient
from chatwright.objectives.feedback.ppo import PPO
from chatwright.objectives.feedback.preference import Preference
from chatwright.objectives.feedback.process import Process
from chatwright.objectives.feedback.reinforce_pp import ReinforcePP
from chatwright.objectives.feedback.rloo import RLOO
from chatwright.objectives.feedback.simpo import SimPO

Method = TypeVar("Method", bound=Objective)

REWARD: dict[str, type[BradleyTerry] | type[Process]] = {
    "bradley_terry": BradleyTerry,
    "margin": Margin,
    "likert": Likert,
    "process": Process,
}
OFFLINE: dict[str, type[Preference]] = {
    "dpo": DPO,
    "conservative_dpo": ConservativeDPO,
    "ipo": IPO,
    "kto": KTO,
    "orpo": ORPO,
    "simpo": SimPO,
}

ONLINE: dict[str, type[PolicyGradient]] = {
    "ppo": PPO,
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "dapo": DAPO,
    "rloo": RLOO,
    "reinforce_pp": ReinforcePP,
    "online_dpo": OnlineDPO,
}


def check(methods: Mapping[str, type[Method]], name: str, options: Mapping[str, float]) -> None:
    """Whether there is such a method with such options.

    Raises:
        ChatwrightError: there is not.
    """
    if name not in methods:
        raise ChatwrightError(f"method {name!r} is not known; use one of {', '.join(methods)}")
    parameters = inspect.signature(methods[name]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.default is not inspect.Parameter.empty]
    for option in options:
        if option not in known:
            raise ChatwrightError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")


def make(methods: Mapping[str, type[Method]], name: str, options: Mapping[str, float], *parts: Any) -> Method:
    """The objective ``name`` of its ``parts``, with ``options`` in the place of its defaults.

    Raises:
        ChatwrightError: as `check`.
    """
    check(methods, name, options)
    return methods[name](*parts, **options)
