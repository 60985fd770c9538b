"""The counted table of operations and bytes, against what PyTorch itself counts while the network runs."""

from __future__ import annotations

import pytest

from styleclip_rt.benchmarks.counts import count, full_width, layers

SMALL = {4: 12, 8: 12, 16: 10, 32: 8}


@pytest.fixture(scope="module")
def generator():
    torch = pytest.importorskip("torch", reason="the count is compared with PyTorch's")
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    torch.manual_seed(0)
    return Generator(GeneratorConfig(32, 16, 16, 2, SMALL)).eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("styles", [True, False])
def test_operations_are_those_of_the_flop_counter(generator, batch: int, styles: bool) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    w = torch.randn(batch, generator.num_ws, 16)
    s = generator.styles(w)
    with FlopCounterMode(display=False) as counter:
        generator(w) if styles else generator.synthesize(s)
    assert count(SMALL, 16, batch, styles=styles).flop == counter.get_total_flops()


def test_bytes_are_those_of_the_tensors_that_convolutions_read_and_write(generator) -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    moved = {"activations": 0, "weights": 0}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.convolution.default:
                moved["activations"] += args[0].numel() + out.numel()
                moved["weights"] += args[1].numel() if args[8] == 1 else 16  # a filter is one 4x4 kernel
            return out

    s = generator.styles(torch.randn(1, generator.num_ws, 16))
    with Watch():
        generator.synthesize(s)
    rows = layers(SMALL, 16, styles=False)
    noise = sum(int(row.name.split(".")[0][1:]) ** 2 for row in rows if row.name.endswith("conv1"))
    assert sum(row.activations for row in rows) == moved["activations"]
    assert sum(row.weights for row in rows) - noise == moved["weights"]


def test_the_1024_px_generator_is_75_gmac() -> None:
    total = count(full_width(1024), 512)
    assert total.flop / 2e9 == pytest.approx(75.3, abs=0.1)
    assert full_width(1024) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


def test_a_batch_reads_its_weights_once() -> None:
    one, two = count(SMALL, 16, 1), count(SMALL, 16, 2)
    assert two.flop == 2 * one.flop
    assert one.bytes < two.bytes < 2 * one.bytes
    assert count(SMALL, 16, itemsize=2).bytes == one.bytes / 2


def test_a_slider_counts_from_its_cut_on() -> None:
    whole, first = count(SMALL, 16, styles=False), count(SMALL, 16, styles=False, start="b4.conv1")
    later = count(SMALL, 16, styles=False, start="b32.conv1")
    assert first == whole
    assert later.flop < whole.flop / 2


def test_the_floor_is_the_larger_of_compute_and_traffic() -> None:
    total = count(SMALL, 16)
    assert total.floor_ms(total.flop, 1e30) == pytest.approx(1e3)
    assert total.floor_ms(1e30, total.bytes / 2) == pytest.approx(2e3)
