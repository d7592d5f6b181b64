"""DDP: its options, and the adapters whose gradients it reduces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy

from swirl_lightning.roles import AdapterName, Role


def set_options(strategy: Strategy) -> None:
    """Set the options of DDP, before it wraps the model; on one device there is nothing to set.

    Gradients lie in DDP's buffers, not beside them. An adapter may get no gradient in a step, where no group of the
    rank has a signal.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs["find_unused_parameters"] = True
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)


class ReducedAdapters:
    """Adapters whose gradients DDP reduces: those that the phase trains, without the zeros of the other."""

    def __init__(self) -> None:
        self._names: tuple[AdapterName, ...] | None = None

    def set(self, strategy: Strategy, module: Any, roles: Sequence[Role]) -> None:
        """Reduce the gradients of the adapters of these roles alone from now on. Collective where they change.

        Args:
            strategy: the Trainer's; one that is not DDP reduces nothing.
            module: the SWIRL that it trains.
            roles: of the models that train.
        """
        if not isinstance(strategy, DDPStrategy):
            return
        names = tuple(dict.fromkeys(module.models.of(role).adapter for role in roles))
        if names != self._names:
            self._names = names
            module.set_ddp_adapters(names)
            strategy.model = module
            strategy.configure_ddp()  # toggling requires_grad under a DDP that is there would break it silently
