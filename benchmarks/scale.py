"""The cost model of docs/scale.md beside what 1, 2 and 4 processes on this machine show: python benchmarks/scale.py

A language model of 8 layers takes three steps of 2 micro-batches in every process; the third is measured. Memory is
what the tensors of parameters, gradients and optimiser take; traffic what the process has written to its sockets.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from chatwright.objectives.language.causal import CausalLanguageModel
from chatwright.training import distributed
from chatwright.training.distributed import Spread, local, repeated_layers
from chatwright.training.optimizer import make_optimizers

MICRO_BATCHES = 2
BYTES = 4  # of a number in fp32


def numel(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


def written() -> int:
    """Bytes that this process has written, to sockets and elsewhere."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"])


def measure() -> None:
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    objective = CausalLanguageModel(Qwen3ForCausalLM(config), None)
    layers = repeated_layers(objective)
    inside = numel(parameter for layer in layers for parameter in layer.parameters())
    everything = numel(objective.parameters())
    count = distributed.size()
    spread = Spread(objective, torch.device("cpu"))
    (optimizer,) = make_optimizers(spread.objective, "adamw", 1e-3, 0.0)
    ids = torch.randint(0, config.vocab_size, (2, 32))
    ones = torch.ones_like(ids)
    batch = {"input_ids": ids, "attention_mask": ones, "loss_mask": ones.bool()}
    for _ in range(3):
        optimizer.zero_grad()
        distributed.barrier()
        before = written()
        for _ in range(MICRO_BATCHES):
            spread(batch).total.backward()
        sent = written() - before
        optimizer.step()
    parameters = [local(parameter) for parameter in spread.objective.parameters()]
    gradients = [local(parameter.grad) for parameter in spread.objective.parameters()]
    moments = [local(value) for state in optimizer.state.values() for value in state.values() if value.ndim]
    held = BYTES * numel([*parameters, *gradients, *moments])
    for number, (memory, traffic) in enumerate(distributed.gathered((held, sent))):
        expected = 4 * BYTES * everything / count
        # Layers are gathered twice and the root once; gloo reduces gradients in full before it scatters them.
        crossing = MICRO_BATCHES * BYTES * (count - 1) / count * (2 * inside + (everything - inside) + 2 * everything)
        if distributed.first():
            row = [count, number, *(f"{size / 1e6:.2f}" for size in (expected, memory, crossing, traffic))]
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    if "RANK" in os.environ or "--one" in sys.argv:
        torch.set_num_threads(1)
        with distributed.world():
            measure()
    else:
        print("| processes | rank | memory, MB: predicted | measured | sent a step, MB: predicted | measured |")
        print("|---|---|---|---|---|---|")
        subprocess.run([sys.executable, __file__, "--one"], check=True)
        for count in (2, 4):
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
            subprocess.run([*launcher, __file__], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
