"""The stages by the name of their command."""

from chatwright.stages.base import Stage

STAGES: dict[str, type[Stage]] = {}
