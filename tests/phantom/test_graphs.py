"""Decode steps as CUDA graphs, on the phantom device: they draw what plain steps draw, also where memory is short."""

from __future__ import annotations

import pytest
import torch

from support.phantom.device import CUDA, PhantomCuda
from support.phantom.graphs import Recording
from support.tiny import text_backbone
from swirl_lightning.engine import config, cuda_graph
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms

PROMPTS = [[2, 40, 41], [2, 50]]


@pytest.fixture
def draw(gemma_path):
    """Rollouts of two prompts, on the device."""
    cuda_graph._stream.cache_clear()  # of the device of another test
    with PhantomCuda() as gpu, torch.no_grad():
        backbone = text_backbone(gemma_path, quantization=None)
        model = backbone.load_model().eval().to(CUDA)
        assert install(model)
        grammar = Grammar(tuple(range(1, 60)), 12, eos=1)
        noise, config = uniforms(["p", "q"], 8, 12), SamplingConfig(2.0, 1.0)
        trunk, head = model.get_decoder(), backbone.head(model)

        def rollouts(**options):
            return Engine(trunk, head, EngineConfig(**options)).sample(grammar, PROMPTS, noise, config).rows()

        yield gpu, trunk, rollouts


def test_replayed_steps_draw_what_steps_draw(draw):
    gpu, _, rollouts = draw
    expected = rollouts(cuda_graphs=False)
    assert rollouts() == expected
    assert gpu.captures == 0  # too short to be worth one
    assert rollouts(cuda_graphs=True) == expected
    assert gpu.captures > 0
    assert gpu.replays > gpu.captures


def test_steps_are_replayed_by_default_once_completions_are_long(draw, monkeypatch):
    gpu, _, rollouts = draw
    monkeypatch.setattr(config, "STEPS_OF_A_GRAPH", 12)
    expected = rollouts(speculative=False, cuda_graphs=False)
    assert gpu.replays == 0
    assert rollouts() == expected
    assert gpu.replays > 0
    replays = gpu.replays
    assert rollouts(speculative=True) == expected
    assert gpu.replays == replays


@pytest.mark.parametrize("ends", [True, False], ids=["the capture ends", "its end fails, too"])
def test_memory_that_runs_out_in_a_capture_halves_the_rows(draw, monkeypatch, recwarn, ends):
    """It is no reason to go on without graphs, in the memory that has just run out."""
    gpu, trunk, rollouts = draw
    expected, forward = rollouts(cuda_graphs=False), trunk.forward

    def short_of_memory(input_ids, **kwargs):
        if gpu.graph is not None and input_ids.numel() > 8:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except torch.OutOfMemoryError:
                if ends:
                    raise
                raise RuntimeError("capture invalidated")  # noqa: B904 - as the context's end raises
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(trunk, "forward", short_of_memory)
    assert rollouts(cuda_graphs=True) == expected
    messages = [str(warning.message) for warning in recwarn]
    assert any("out of memory with" in message for message in messages)
    assert not any("not replayed" in message for message in messages)
    assert gpu.replays > 0


@pytest.mark.parametrize("told", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
@pytest.mark.parametrize("where", ["in the capture", "in the replay"])
def test_memory_that_runs_out_where_the_allocator_does_not_see_it_halves_the_rows(
    draw, monkeypatch, recwarn, where, told
):
    """The making and the first launch of a graph take memory of their own; their error has another class."""
    gpu, trunk, rollouts = draw
    expected, forward, replay, replayed = rollouts(cuda_graphs=False), trunk.forward, Recording.replay, []
    emptied_on = []

    def captures(input_ids, **kwargs):
        if gpu.graph is not None and input_ids.numel() > 8 and where == "in the capture":
            raise torch.AcceleratorError(told)
        return forward(input_ids=input_ids, **kwargs)

    def replays(graph):
        replayed.append(graph)
        if len(replayed) == 1 and where == "in the replay":
            raise torch.AcceleratorError(told)
        return replay(graph)

    monkeypatch.setattr(trunk, "forward", captures)
    monkeypatch.setattr(Recording, "replay", replays)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied_on.append(gpu.current))
    assert rollouts(cuda_graphs=True) == expected
    messages = [str(warning.message) for warning in recwarn]
    assert any("out of memory with" in message for message in messages)
    assert not any("not replayed" in message for message in messages)
    assert gpu.replays > 0
    assert set(emptied_on) == {CUDA}  # elsewhere, segments that another device still uses would be unmapped


def test_a_step_that_waits_for_the_device_is_found_before_a_capture(draw, monkeypatch, recwarn):
    """A capture that fails leaves torch unsound, so there is none, and no second attempt."""
    gpu, trunk, rollouts = draw
    expected, forward = rollouts(cuda_graphs=False), trunk.forward

    def waits(input_ids, **kwargs):
        assert int(input_ids.max()) >= 0
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(trunk, "forward", waits)
    stream = gpu.stream
    for _ in range(2):
        assert rollouts(cuda_graphs=True) == expected
    messages = [str(warning.message) for warning in recwarn if "not replayed" in str(warning.message)]
    assert len(messages) == 1
    assert "called a synchronizing CUDA operation" in messages[0]
    assert (gpu.captures, gpu.stream, gpu.refuses_waits) == (0, stream, 0)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(draw, monkeypatch, recwarn):
    gpu, trunk, rollouts = draw
    expected, forward = rollouts(cuda_graphs=False), trunk.forward

    def fails(input_ids, **kwargs):
        if gpu.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(trunk, "forward", fails)
    stream = gpu.stream
    assert rollouts(cuda_graphs=True) == expected
    assert any("operation not permitted" in str(warning.message) for warning in recwarn)
    assert (gpu.captures, gpu.stream) == (1, stream)


def test_captures_run_on_the_models_device_and_its_one_stream(draw):
    """torch's own stream for captures is that of the first device; each further stream has a workspace of cuBLAS."""
    gpu, _, rollouts = draw
    for _ in range(2):
        rollouts(cuda_graphs=True)
    (side, device), *others = gpu.captured_on
    assert others
    assert all(other == (side, device) for other in others)
    assert device == side.device == CUDA
    main = gpu.stream
    assert gpu.order == [(side, main), (main, side)] * len(gpu.captured_on)  # before the warm-up, and after the capture
