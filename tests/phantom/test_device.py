"""The phantom device itself: planted mistakes raise as on CUDA, and what CUDA allows passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from support.phantom.device import CPU, CUDA, MixedDevicesError, PhantomCuda


class Bad(torch.autograd.Function):
    """Its backward mixes devices."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.ones(2)


def there(*shape, **kwargs):
    return torch.ones(*shape, device="cuda", **kwargs)


def on_default_device():
    with torch.device("cuda"):
        made = torch.zeros(3)
    return made + torch.zeros(3)


def recomputed():
    x = there(2, requires_grad=True)
    tries = iter([CUDA, CPU])  # the second run is that of the backward pass
    work = lambda x: (x * torch.ones(2, device=next(tries))).exp()  # noqa: E731
    checkpoint(work, x, use_reentrant=False).sum().backward()


MISTAKES = {
    "sum": lambda: torch.ones(2) + there(2),
    "in place": lambda: there(2).add_(torch.ones(2)),
    "concatenation": lambda: torch.cat([torch.ones(2), there(2)]),
    "layer": lambda: torch.nn.Linear(2, 2, device="cuda")(torch.ones(1, 2)),
    "embedding": lambda: torch.nn.Embedding(3, 2)(torch.zeros(1, dtype=torch.long, device="cuda")),
    "mask": lambda: there(2).masked_fill(torch.ones(2, dtype=torch.bool), 0),
    "where": lambda: torch.where(there(2) > 0, there(2), torch.zeros(2)),
    "index of a table on the CPU": lambda: torch.ones(4)[torch.tensor([1], device="cuda")],
    "value of an assignment": lambda: there(4).index_put_((torch.tensor([0], device="cuda"),), torch.ones(1)),
    "result": lambda: torch.add(there(2), there(2), out=torch.ones(2)),
    "a view's device": lambda: there(2, 2)[0].t() + torch.ones(2),
    "a scalar of the device": lambda: torch.ones(2) * there(2).sum(),
    "generator": lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
    "generator, default device": lambda: torch.randn(2, device="cuda").normal_(generator=torch.Generator()),
    "default device": on_default_device,
    "backward": lambda: Bad.apply(there(2, requires_grad=True)).sum().backward(),
    "recomputation": recomputed,
    "kernel of the CPU": lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*[there(1, 1, 2, 8)] * 3),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mixing_devices_raises(name):
    with PhantomCuda(), pytest.raises(MixedDevicesError):
        MISTAKES[name]()


def test_arrays_of_the_device_cannot_be_had():
    for convert in (lambda t: t.numpy(), np.asarray):
        with PhantomCuda(), pytest.raises(TypeError, match="numpy"):
            convert(there(2))


LEGAL = {
    "number": lambda: there(2) * 2.0,
    "scalar of the CPU": lambda: there(2) * torch.tensor(2.0),
    "index of the CPU": lambda: there(4)[torch.tensor([1])],
    "list": lambda: there(4)[[0, 1]],
    "layer": lambda: torch.nn.Linear(2, 2).to("cuda")(there(1, 2)),
    "new": lambda: there(2) + there(3).new_ones(2) + torch.ones_like(there(2)),
    "to another": lambda: torch.ones(2).to(there(2)) + there(2),
    "copy in place": lambda: there(2).copy_(torch.ones(2)),
    "backward": lambda: (there(2, requires_grad=True) * 2).sum().backward() or there(2),
    "as_tensor": lambda: torch.as_tensor(torch.ones(2), device="cuda") + there(2),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_cuda_allows_passes_and_stays_there(name):
    with PhantomCuda():
        out = LEGAL[name]()
        assert out.device == CUDA
        assert out.is_cuda
        back = out.cpu()
        assert back.device == CPU
        assert (back + torch.zeros(())).device == CPU
    assert torch.ones(2).device == CPU


@pytest.mark.parametrize(
    ("waits", "work"),
    [
        (0, lambda x: (x * 2).sum().clamp(min=1)),
        (0, lambda x: x.masked_fill(x > 0, 0.0)),
        (0, lambda x: torch.full_like(x, 3.0)),
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool((x > 0).any())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x.nonzero()),
        (1, lambda x: torch.tensor([1.0], device=x.device)),
        (1, lambda x: torch.ones(2).to(x.device)),
        (1, lambda x: x[torch.tensor([0])]),
    ],
)
def test_waits_of_the_host_are_counted(waits, work):
    with PhantomCuda() as gpu:
        x = there(2)
        work(x)
        assert gpu.waits.total() == waits


def captured(gpu, step, x):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(x)
    return graph, out


def test_a_graph_repeats_its_calls_and_nothing_of_python():
    numbers, scalar = iter([1.0, 100.0]), torch.tensor(2.0)
    with PhantomCuda() as gpu:
        x = there(2)
        graph, out = captured(gpu, lambda x: x * scalar + next(numbers), x)
        x.fill_(5.0)
        scalar.fill_(7.0)
        graph.replay()
        assert out.tolist() == [11.0, 11.0]
        assert (gpu.captures, gpu.replays) == (1, 1)


@pytest.mark.parametrize(
    "step", [lambda x: x * x.sum().item(), lambda x: x + torch.ones(2).to(x.device), lambda x: x[x > 0]]
)
def test_a_graph_takes_no_step_that_waits(step):
    with PhantomCuda() as gpu:
        with pytest.raises(RuntimeError, match="capturing"):
            captured(gpu, step, there(2))
        there(2).sum().item()  # and nothing is left of it
