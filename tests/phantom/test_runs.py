"""Every family on the phantom device: nothing mixes devices from the first load to the last prediction."""

from __future__ import annotations

import pytest
import torch
from tiny_families import FAMILIES, backbone_of

from phantom.device import CUDA, PhantomCuda


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: family.write(tmp_path_factory.mktemp(name)) for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_is_loaded_where_lightning_makes_models(name, folders):
    """Lightning configures models under the root device; states are then read and shown there."""
    states = FAMILIES[name].states(2)
    with PhantomCuda():
        backbone = backbone_of(name, folders[name])
        with torch.device(CUDA):
            model = backbone.load_model()
            backbone.state_grammar  # noqa: B018
        assert all(p.is_cuda for p in model.parameters())
        ids = backbone.encode_states(states, CUDA)
        shown = backbone.decode_states(ids, CUDA)
        assert [type(state) for state in shown] == [type(state) for state in states]
