"""Several processes that train one model together, started by `torchrun`; one process alone is the usual case."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...engines.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Files, bars and messages are the first one's."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def check_batch(self, batch: int) -> None:
        """InputError unless the processes can share a batch equally: then the mean of their means is the mean."""
        if batch % self.count:
            raise InputError(f"a batch of {batch} cannot be shared by {self.count} processes; expected a multiple")

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a global batch [N, ...], in order."""
        if self.count == 1:
            return batch
        self.check_batch(len(batch))
        return batch.chunk(self.count)[self.index]

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars, averaged over the processes; every process must ask for the same ones."""
        if self.count == 1:
            return {name: float(value.detach()) for name, value in values.items()}
        stacked = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.count).tolist(), strict=True))


def ranks() -> Ranks:
    """This process and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started, by its environment: NCCL with a GPU each, else Gloo on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield Ranks()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield ranks()
    finally:
        dist.destroy_process_group()


def parallel(module: nn.Module) -> nn.Module:
    """`module`, its gradients averaged over the processes (DistributedDataParallel); one process: itself."""
    if ranks().count == 1:
        return module
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices)
