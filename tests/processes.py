"""Processes that start at once: children of one that has imported everything and has run no thread yet."""

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from chatwright.stages.base import Stage, execute
from chatwright.training import distributed

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["chatwright.cli", "tests.conftest", "tests.processes"])


def launch(count: int, logs: Path, function: Callable[..., Any], *arguments: Any, restarts: int = 0) -> dict[int, Any]:
    """What ``function`` returns in each of ``count`` processes, as `torchrun` starts and watches them.

    Args:
        logs: a folder for what they print. restarts: times that all are started anew after one has failed.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return elastic_launch(config, function)(*arguments)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(stage: Stage, out: Path) -> bool:
    """A stage in this process, or the share of it that falls to this process."""
    torch.set_num_threads(1)
    with distributed.world():
        return execute(stage, out)
