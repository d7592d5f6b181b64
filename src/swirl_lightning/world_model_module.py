"""LightningModule of two world models on one base: loading of the base, prediction and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from swirl_lightning.adapters import AdapterConfig, Adapters
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.identity import base_identity
from swirl_lightning.data.batch import TransitionBatch
from swirl_lightning.data.module import TransitionDataModule
from swirl_lightning.data.token_cache import StateTokens
from swirl_lightning.engine.drawing import GREEDY, SamplingConfig
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.kernels import leave_out_cudnn
from swirl_lightning.engine.out_of_memory import ran_out
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.evaluation import EvaluationConfig, Evaluator
from swirl_lightning.prompts import PromptBuilder, PromptTemplates
from swirl_lightning.roles import ROLES, AdapterName, Role
from swirl_lightning.rollout_engines import RolloutEngine
from swirl_lightning.transition import State, Transition
from swirl_lightning.world_models import WorldModels


class WorldModelModule(LightningModule):
    """Two world models on one base, without a training algorithm. Arguments as :class:`swirl_lightning.SWIRL`.

    Attributes:
        model: the base with its adapters, None before :meth:`configure_model`.
        states: cache of the tokens of states.
        label: name of the current weights in result tables.
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: AdapterConfig,
        shared_weights: bool,
        roles: tuple[str, ...],
        sampling: SamplingConfig,
        templates: PromptTemplates,
        evaluation: EvaluationConfig,
        max_tokens_per_forward: int | None,
        max_cached_tokens: int | None,
        rollout_engine: RolloutEngine | None,
        token_cache: str | None,
    ) -> None:
        super().__init__()
        if not roles or set(roles) - set(ROLES):
            raise ValueError(f"roles must be among {[role.value for role in ROLES]}, got {list(roles)}")
        if evaluation.best_of > 1 and len(set(roles)) == 1:
            raise ValueError(f"evaluation.best_of asks both models, got roles {list(roles)}")
        self.backbone, self.lora, self.shared_weights = backbone, lora, shared_weights
        self.roles = tuple(Role(role) for role in roles)
        self.sampling, self.templates, self.evaluation = sampling, templates, evaluation
        self.max_tokens_per_forward, self.max_cached_tokens = max_tokens_per_forward, max_cached_tokens
        self.rollout_engine = rollout_engine
        budgets = ("max_tokens_per_forward", "max_cached_tokens")
        check_ranges("model", vars(self), **dict.fromkeys(budgets, "whole [1, inf) or null"))
        self.states = StateTokens(backbone, cache_dir=token_cache)
        self.label = "base"
        self.model: torch.nn.Module | None = None
        self.base_identity: dict[str, str] = {}
        self.base_parts: dict[str, str] = {}
        self._models: WorldModels | None = None
        self._evaluator: Evaluator | None = None

    # ---- construction ----------------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Before the base loads: check what the data's states are, and set lengths that options leave to the data.

        Raises:
            ValueError: they are texts, and the backbone reads images, or the other way.
        """
        data = getattr(self.trainer, "datamodule", None)
        backbone = self.backbone
        if isinstance(data, TransitionDataModule):
            for split, row in zip(data.splits_needed(stage), data.sample(stage, most=1), strict=False):
                backbone.check_kind(row.before, f"the split {split!r} (record {row.id!r})")
            if backbone.needs_lengths:
                backbone.set_lengths(backbone.measure_lengths(data.sample(stage)))
                backbone.lengths_of_evaluation = stage != "fit"  # then a training measures its own

    def configure_model(self) -> None:
        """Load the base once and put the adapters on it."""
        if self.model is not None:
            self.set_ddp_adapters(self.adapters.names)
            return
        leave_out_cudnn()
        base = self.backbone.load_model()
        self.base_identity, self.base_parts = base_identity(base, self.backbone), self.backbone.parts()
        trunk = self.backbone.trunk(base)
        adapters = Adapters(base, self.lora, self.backbone.lora_targets, self.shared_weights, trunk)
        self.model = adapters.model.train()  # Hugging Face loads in eval mode, and Lightning keeps it
        if self.backbone.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": adapters.recompute_contexts})
        settings = self.templates, self.max_tokens_per_forward, self.max_cached_tokens, self.rollout_engine
        self._models = WorldModels(self.backbone, base, adapters, *settings)
        self._evaluator = Evaluator(
            self._models, self.backbone, self.states, self.evaluation, self.sampling, self.roles
        )
        self.set_ddp_adapters(adapters.names)

    def set_ddp_adapters(self, names: Sequence[AdapterName]) -> None:
        """Let DDP see these adapters alone where it wraps this module next.

        The base is the same on every rank by construction: 4-bit weights need not be sent.
        """
        seen = {id(p) for name in names for p in self.adapters.parameters(name)}
        self._ddp_params_and_buffers_to_ignore = [
            name for name, tensor in [*self.named_parameters(), *self.named_buffers()] if id(tensor) not in seen
        ]

    @property
    def models(self) -> WorldModels:
        """Both world models; RuntimeError before :meth:`configure_model`, as for the three below."""
        return _loaded(self._models)

    @property
    def adapters(self) -> Adapters:
        """Adapters on the base."""
        return self.models.adapters

    @property
    def prompts(self) -> PromptBuilder:
        """Builder of the prompts of both models."""
        return self.models.prompts

    @property
    def evaluator(self) -> Evaluator:
        """Evaluator of validation, test and prediction."""
        return _loaded(self._evaluator)

    def teardown(self, stage: str) -> None:
        """Write the tokens of new states to the token cache."""
        self.states.flush()

    def encode_pairs(self, transitions: Sequence[Transition]) -> tuple[list[TokenIds], list[TokenIds]]:
        """Encode the state before, x, and the state after, y, of every transition as content ids."""
        ids = self.states.encode([t.before for t in transitions] + [t.observed for t in transitions], self.device)
        return ids[: len(transitions)], ids[len(transitions) :]

    # ---- use -------------------------------------------------------------------------------------
    def predict_state(self, before: State, action: str, n: int = 1, greedy: bool = False, seed: int = 0) -> list[State]:
        """Sample ``n`` next states of ``before`` under ``action`` from the FWM: y ~ P(y | x, z).

        Args:
            before: a text or an RGB image, as the backbone reads it.
            action: in words.
            n: number of states.
            greedy: take the likeliest token at each place instead of ``sampling``; all ``n`` are then equal.
            seed: equal seeds draw equal states.

        Raises:
            RuntimeError: the base is not loaded yet.
            ValueError: ``before`` is no state of this backbone, ``action`` has no words or is outside the grammar of
                actions, ``n`` is below 1, or the module has no FWM (``roles``).
        """
        self._check_prediction(Role.FWM, n)
        self.backbone.check_action(action)
        x, z = self.states.encode([before], self.device), [self.backbone.encode_action(action)]
        config = GREEDY if greedy else self.sampling
        y = self.models.fwm.sample(x, z, [f"predict|{seed}"], config, group=n)
        return self.backbone.decode_states(y.contents, self.device)

    def predict_action(self, before: State, after: State, n: int = 1, greedy: bool = False, seed: int = 0) -> list[str]:
        """Sample ``n`` actions that lead from ``before`` to ``after`` from the IDM: z ~ Q(z | x, y).

        Arguments are those of :meth:`predict_state`, and so are errors; it is the IDM that ``roles`` must have.
        """
        self._check_prediction(Role.IDM, n)
        x, y = ([ids] for ids in self.states.encode([before, after], self.device))
        config = GREEDY if greedy else self.sampling
        z = self.models.idm.sample(x, y, [f"predict|{seed}"], config, group=n)
        return [self.backbone.decode_action(content) for content in z.contents]

    def _check_prediction(self, role: Role, n: int) -> None:
        check_ranges("predict", {"n": n}, n="whole [1, inf)")
        if role not in self.roles:
            trained = [name.value for name in self.roles]
            raise ValueError(f"this module has no {role.upper()}, which predicts here: model.roles are {trained}")

    # ---- training --------------------------------------------------------------------------------
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass, which is not repeated if memory runs out: its gradients are summed in part.

        Raises:
            torch.OutOfMemoryError: it does; the message names the cure.
        """
        try:
            super().backward(loss, *args, **kwargs)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            half = max(1, self.models.engine.scoring_budget.largest // 2)
            raise torch.OutOfMemoryError(
                f"{error}. That was the backward pass of an update: set model.max_tokens_per_forward to {half} or "
                "less, or backbone.gradient_checkpointing: true, and resume with --ckpt_path last"
            ) from error

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each adapter's gradients by their own norm: in the warm-up, the other model's mean nothing."""
        for group in optimizer.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            if held and gradient_clip_val:
                clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
                clip(held, gradient_clip_val)

    # ---- evaluation ------------------------------------------------------------------------------
    def on_validation_epoch_start(self) -> None:
        """Begin with new metrics.

        Raises:
            TypeError: the data make none, as a TransitionDataModule does.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "state_metrics"):
            told = "a TransitionDataModule makes the metrics of an evaluation"
            raise TypeError(f"{told}: give one as datamodule, not {type(data).__name__} or dataloaders")
        self.evaluator.start(data, self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: TransitionBatch, batch_idx: int) -> None:
        """Predict states and actions in each of ``evaluation.modes``, and score them."""
        self.evaluator.step(batch.transitions, self.device)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``."""
        self._log_evaluation("test")

    def predict_step(self, batch: TransitionBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Predict state and action of each transition."""
        return self.evaluator.predict(batch.transitions, self.device) if batch.transitions else []

    def _log_evaluation(self, split: str) -> None:
        for name, value in self.evaluator.compute().items():
            self.log(f"{split}/{name}", value, rank_zero_only=False, sync_dist=False)

    # ---- weights: those of the adapters, never the base's ----------------------------------------
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the adapters' tensors alone."""
        return self.adapters.state_dict()

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load exactly all adapter tensors; see :meth:`Adapters.load_state_dict`."""
        self.adapters.load_state_dict(state_dict)


def _loaded(part: Any) -> Any:
    if part is None:
        raise RuntimeError("the base is not loaded yet: call configure_model(), or run the module under a Trainer")
    return part
