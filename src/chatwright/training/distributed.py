"""Several processes as one: `torchrun` starts them, and FSDP2 spreads what is trained over them.

Every process of a world runs the same command. Each computes its share of a step; what is decided (when to save, when
to stop, what is on disk) the first decides for all, and only the first prints and writes artifacts. One process alone
is a world of one on the same code path, without a process group.
"""

import copy
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from chatwright.errors import ChatwrightError
from chatwright.objectives.base import Loss, Objective
from chatwright.terminal import console

# How long one process may work alone while the others wait; whether one has died, torchrun notices.
PATIENCE = timedelta(days=1)

T = TypeVar("T")


@contextmanager
def world() -> Iterator[None]:
    """Make one world of the processes that `torchrun` started; without it, nothing.

    The first process that fails says why; those that fail because they waited for it end without a word.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store, number, count = next(dist.rendezvous("env://"))
    # Workers that are started anew find the same store, and must not find their predecessors' addresses in it.
    store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']} of {count}", store)
    dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=number, world_size=count)
    console.quiet = number > 0
    try:
        yield
    except BaseException as error:
        if store.add("failed", 1) > 1:
            raise SystemExit(1) from error
        raise
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def agreed(value: T) -> T:
    """What the first process says; the others' ``value`` does not matter."""
    if size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    return said[0]


def gathered(value: T) -> list[T]:
    """What every process says, in their order."""
    if size() == 1:
        return [value]
    said: list[Any] = [None] * size()
    dist.all_gather_object(said, value)
    return said


def total(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all the others."""
    total(torch.zeros(1))


class Spread(nn.Module):
    """An objective as the loop trains it: in a world of several processes each keeps a part of every parameter.

    FSDP2 changes modules in place and for good. So it gets a twin of the objective, the same modules around the same
    tensors, and the objective stays what all others know; its weights are gone to the twin except within
    ``objective.whole()`` and after `finish`.

    The root of FSDP2 is the loss itself, so that the head and the embeddings, which objectives use on their own, are
    there for all of it. Units of their own are the layers that every loss calls (`repeated_layers`).

    Args:
        objective: its parameters are the same in every process.
        device: where to train.

    Raises:
        ChatwrightError: a parameter cannot be spread.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        super().__init__()
        self.plain = [objective]  # in a list, so that it is no part of this module
        if size() == 1:
            self.objective = objective.to(device)
            return
        for parameter in objective.parameters():
            parameter.data = parameter.data.contiguous()
        tensors = [*objective.parameters(), *objective.buffers()]
        self.objective = copy.deepcopy(objective, {id(tensor): tensor for tensor in tensors})
        layers = repeated_layers(self.objective)
        _check(self.objective, layers)
        mesh = init_device_mesh(device.type, (size(),))
        for unit in [*layers, self]:
            module = fully_shard(unit, mesh=mesh)
            module.set_gradient_divide_factor(1.0)  # sums, which the loop divides
            module.set_force_sum_reduction_for_comms(True)
            # A text-only micro-batch in one process and a picture in another: the eye gets zeros from the first.
            module.set_reduce_scatter_unused_params(True, recurse=False)
        if left := [name for name, p in self.objective.named_parameters() if not isinstance(p, DTensor)]:
            raise ChatwrightError(f"{left[0]} and {len(left) - 1} more parameters were not spread; use one process")
        self._release()
        objective.whole = self.whole

    def forward(self, batch: dict[str, Any]) -> Loss:
        return self.objective.loss(batch)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the objective has its weights, as they are now."""
        self._gather()
        yield
        self._release()

    def finish(self) -> None:
        """Give the objective its weights back."""
        if size() > 1:
            self._gather()
            del self.plain[0].whole

    @torch.no_grad()
    def _gather(self) -> None:
        plain = dict(self.plain[0].named_parameters())
        for name, part in self.objective.named_parameters():
            plain[name].data = full(part.detach())

    def _release(self) -> None:
        for parameter in self.plain[0].parameters():
            parameter.data = parameter.data.new_empty(0)


def full(tensor: Tensor) -> Tensor:
    """A tensor that may be spread, in full."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process' part of a tensor that may be spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def repeated_layers(objective: Objective) -> list[nn.Module]:
    """The layers of the objective's models that every loss calls in turn: the outermost lists of one type of module.

    Of a multimodal model those of the decoder alone: a text-only micro-batch calls no eye, and a process that did not
    take part in gathering an eye's layer would leave the others waiting. What is in no list belongs to the root.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for model in objective.modules():
        if isinstance(model, PreTrainedModel) and model not in inside:
            inside |= set(model.modules())
            found += _layers(model.get_decoder() if model.config.get_text_config() is not model.config else model)
    return found


def _layers(stack: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and module not in inside and len({type(layer) for layer in module}) == 1:
            inside |= set(module.modules())
            found += module
    return found


def _check(objective: Objective, layers: list[nn.Module]) -> None:
    """Whether every parameter belongs to exactly one unit, a layer or the root."""
    unit_of = {part: number for number, layer in enumerate(layers) for part in layer.modules()}
    units: defaultdict[nn.Parameter, set[int | None]] = defaultdict(set)
    for module in objective.modules():
        for parameter in module.parameters(recurse=False):
            units[parameter].add(unit_of.get(module))
    for name, parameter in objective.named_parameters():
        if len(units[parameter]) > 1:
            raise ChatwrightError(f"{name} is shared between layers, so it cannot be spread; use one process")
        if not parameter.ndim:
            raise ChatwrightError(f"{name} is a scalar, which FSDP2 cannot spread; make it a vector or use one process")
