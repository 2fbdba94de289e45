"""The one loop that trains everything: self-supervised eyes, language models, reward models, policies."""

import json
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chatwright.data.packing import Packing
from chatwright.errors import ChatwrightError
from chatwright.files import write
from chatwright.objectives.base import Objective
from chatwright.training import checkpoint, distributed
from chatwright.training.activations import checkpointed
from chatwright.training.checkpoint import Checkpoints
from chatwright.training.distributed import Spread
from chatwright.training.optimizer import make_optimizers, schedule
from chatwright.training.precision import autocast, choose, lowered
from chatwright.training.progress import Bar


@dataclass
class Training:
    """Settings of the loop.

    learning_rate: at its peak. warmup: part of the steps over which it rises. decay: cosine, linear, wsd or constant.
    optimizer: adamw or muon. weight_decay: of matrices. clip: largest norm of the gradient.
    precision: fp32, bf16, or auto: bf16 on a GPU, and on a CPU whichever a short trial finds faster.
    activation_checkpointing: none, selective or full: saves memory for time (`chatwright.training.activations`).
    checkpoint_seconds: time between checkpoints; more where saving is slow. log_every: steps between lines of metrics.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.05
    decay: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "auto"
    activation_checkpointing: str = "none"
    checkpoint_seconds: float = 30.0
    log_every: int = 5


class Loader(Protocol):
    """Yields the micro-batches of one optimiser step after another and can say, and be told, where it is.

    After `share` it yields what falls to one of several processes: to each as many micro-batches, of the same kinds in
    the same order, since all take part in the computation of every one (`chatwright.data.batches.share_of`).
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[dict[str, Any]]]: ...
    def share(self, rank: int, size: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fit(objective: Objective, loader: Loader, settings: Training, out: Path, title: str) -> None:
    """Train ``objective`` on ``loader``, going on from ``out/state/<title>`` if a run was cut off there.

    Losses are sums: the loop adds up the gradients of all micro-batches of all processes and divides once by their
    weight. Metrics go to ``out/metrics.jsonl``. Ctrl-C and SIGTERM save a checkpoint before they end the run. Its end
    is none: what is made of it is saved next, and a run that is cut off before that repeats the last steps.

    Raises:
        ChatwrightError: the loss is not finite, or a step has nothing to learn from.
    """
    device = best_device()
    objective.train()
    spread = Spread(objective, device)
    optimizers = make_optimizers(spread.objective, settings.optimizer, settings.learning_rate, settings.weight_decay)
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    state, log = out / "state" / title, out / "metrics.jsonl" if distributed.first() else Path(os.devnull)
    loader.share(distributed.rank(), distributed.size())
    with Checkpoints(state) as checkpoints, checkpointed(spread.objective, settings.activation_checkpointing):
        step, tokens = _resume(checkpoints, spread.objective, optimizers, loader)
        logged = _logged(log, title)
        precision = ""
        sums: dict[str, list[Tensor]] = defaultdict(list)
        weights: list[Tensor] = []
        saved = begun = time.monotonic()
        cost, since = 0.0, 0
        with Bar(title, len(loader), start=step) as bar, _stop_signals() as stop, log.open("a") as metrics:
            for micro_batches in loader:
                read = sum(_count(batch) for batch in micro_batches if not batch.get("repeated"))
                micro_batches = [to_device(batch, device) for batch in micro_batches]
                precision = precision or choose(settings.precision, state, spread, micro_batches[0], device)
                totals = {"loss": (torch.zeros((), device=device), torch.zeros((), device=device))}
                with lowered(spread, precision):
                    for batch in micro_batches:
                        counts = not batch.pop("repeated", False)
                        with autocast(precision, device):
                            loss = spread(batch)
                        (loss.total if counts else 0 * loss.total).backward()
                        if counts:
                            _add(totals, {"loss": (loss.total.detach(), loss.weight), **loss.metrics})
                due = time.monotonic() - saved > max(settings.checkpoint_seconds, 20 * cost) and not checkpoints.busy
                read, stopping, due = _over_processes(read, bool(stop), due)
                weight = distributed.total(totals["loss"][1].float().clone())
                # Of a step without weight, which is told of below, the gradients are zero and have to stay numbers.
                divisor = weight.clamp_min(torch.finfo(weight.dtype).tiny)
                for parameter in parameters:
                    if parameter.grad is not None:
                        distributed.local(parameter.grad).div_(divisor)
                norm = nn.utils.clip_grad_norm_(parameters, settings.clip, foreach=True)
                rate = settings.learning_rate * schedule(step, len(loader), settings.warmup, settings.decay)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["factor"]
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                step, tokens, since = step + 1, tokens + read, since + read
                for name, (total, count) in totals.items():
                    sums[name].append(torch.stack([total.float(), count.float()]))
                weights.append(weight)
                # Looking at a number waits for the device, so it is done only where numbers are told or kept.
                if step % settings.log_every == 0 or step == len(loader) or stopping:
                    for number, known in enumerate(torch.stack(weights).tolist(), step - len(weights) + 1):
                        if not known > 0:
                            raise ChatwrightError(
                                f"{title}: step {number} has nothing to learn from; check the data's masks"
                            )
                    weights.clear()
                    means = _means(sums)
                    if not math.isfinite(means["loss"]):
                        raise ChatwrightError(
                            f"{title}: the loss is {means['loss']} at step {step}; lower learning_rate"
                        )
                if step % settings.log_every == 0 or step == len(loader):
                    length = float(distributed.full(norm))
                    line = {"stage": title, "step": step, **means, "norm": length, "lr": rate, "tokens": tokens}
                    if step not in logged:
                        metrics.write(
                            json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n"
                        )
                        metrics.flush()
                    now = time.monotonic()
                    bar.advance(
                        step - bar.done,
                        loss=means["loss"],
                        tokens_per_second=since / max(1e-9, now - begun),
                        **_shown(means),
                    )
                    begun, since = now, 0
                    sums.clear()
                if (due and step % settings.log_every == 0) or stopping:
                    start = time.monotonic()
                    _save(checkpoints, step, tokens, spread.objective, optimizers, loader, last=stopping)
                    saved = time.monotonic()
                    cost = saved - start
                if stopping:
                    raise KeyboardInterrupt
    spread.finish()


def best_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor | Packing) else value for key, value in batch.items()}


def _trained(objective: Objective) -> dict[str, Tensor]:
    """What training changes: parameters with gradients, and buffers that are saved with a model."""
    kept = objective.state_dict(keep_vars=True)
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    buffers = {name: b for name, b in objective.named_buffers() if name in kept}
    return {**parameters, **buffers}


def _save(
    checkpoints: Checkpoints,
    step: int,
    tokens: int,
    objective: Objective,
    optimizers: list[torch.optim.Optimizer],
    loader: Loader,
    last: bool = False,
) -> None:
    where = loader.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in _trained(objective).items()}
    tensors |= checkpoint.optimizer_tensors(optimizers)
    tensors |= {f"loader.{name}": value for name, value in where.items() if isinstance(value, Tensor)}
    tensors["random"] = torch.stack(distributed.gathered(torch.get_rng_state()))
    values = {"loader": {k: v for k, v in where.items() if not isinstance(v, Tensor)}, "tokens": tokens}
    (checkpoints.finish if last else checkpoints.save)(step, tensors, values)


def _resume(
    checkpoints: Checkpoints, objective: Objective, optimizers: list[torch.optim.Optimizer], loader: Loader
) -> tuple[int, int]:
    trained = _trained(objective)
    found = checkpoints.load({f"model.{name}": t for name, t in trained.items()} | checkpoint.optimized(optimizers))
    if found is None:
        return 0, 0
    step, tensors, values = found
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(tensors[f"model.{name}"])
    checkpoint.restore_optimizers(optimizers, tensors)
    parts = {k.removeprefix("loader."): v for k, v in tensors.items() if k.startswith("loader.")}
    loader.load_state_dict({**values["loader"], **parts})
    random = tensors["random"]
    torch.set_rng_state(random[distributed.rank() % len(random)].clone())
    return step, int(values["tokens"])


def _logged(log: Path, title: str) -> set[int]:
    """The steps that the log already tells of, of which a resumed run does some again, with the same metrics.

    Their lines stay where they are: what was trained after this may stand behind them, and goes on further on.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if not log.is_file():
        return set()
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n")]  # one may be half
    write(log, "".join(lines))
    return {line["step"] for line in map(json.loads, lines) if line["stage"] == title}


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM ask for a stop after the step; a second one stops at once.

    Not so in a world of several: its processes get Ctrl-C from the terminal and again from `torchrun`.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and distributed.size() == 1:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _add(totals: dict[str, tuple[Tensor, Tensor]], more: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (total, weight) in more.items():
        before = totals.get(name)
        totals[name] = (total, weight) if before is None else (before[0] + total, before[1] + weight)


def _over_processes(tokens: int, stop: bool, due: bool) -> tuple[int, bool, bool]:
    """The tokens in a step of all processes; whether any is to stop; whether to save, which is for the first to say, by
    its clock."""
    counts = torch.tensor([tokens, stop, due and distributed.first()], dtype=torch.float64)
    read, stopping, saving = distributed.total(counts).tolist()
    return int(read), stopping > 0, saving > 0


def _means(sums: dict[str, list[Tensor]]) -> dict[str, float]:
    """What the metrics of all processes are on average; not all processes have all of them."""
    totals: dict[str, tuple[float, float]] = {}
    for part in distributed.gathered({name: torch.stack(some).sum(0).tolist() for name, some in sums.items()}):
        for name, (total, weight) in part.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + weight)
    return {name: total / weight if weight else 0.0 for name, (total, weight) in totals.items()}


def _count(batch: dict[str, Any]) -> int:
    """Tokens of a batch, or items where it has no tokens."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else len(next(iter(batch.values())))


def _shown(means: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in means.items() if name in ("accuracy", "reward", "kl")}
