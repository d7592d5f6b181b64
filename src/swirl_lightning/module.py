"""SWIRL as a LightningModule: warm-up, Phase I and Phase II (arXiv 2602.06130)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from swirl_lightning import checkpoint as ckpt
from swirl_lightning.adapters import ROLES, Adapters, LoraSettings
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.data.batch import TransitionBatch
from swirl_lightning.data.token_cache import StateTokens
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.cpu import give_freed_blocks_back
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.noise import replace_tokens, uniforms
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.evaluation import EvaluationConfig, Evaluator
from swirl_lightning.finite import FiniteCheck
from swirl_lightning.grpo import GRPOConfig, group_advantages, grpo_loss, token_weights, zero_variance_share
from swirl_lightning.prompts import PromptBuilder, PromptTemplates
from swirl_lightning.restore import restore
from swirl_lightning.rewards import MeanLogProb, Reward
from swirl_lightning.rollouts import Rollouts, Update
from swirl_lightning.schedule import RL_PHASES, Phase, PhaseLR, PhaseOptimConfigs, PhaseSchedule
from swirl_lightning.transition import Transition
from swirl_lightning.world_models import WorldModels


class SWIRL(LightningModule):
    """A forward world model and an inverse dynamics model that improve each other from state-only pairs.

    Args:
        backbone: the model family and its checkpoint.
        lora: size and place of the adapters.
        shared_weights: one adapter plays both models (less memory, less stable).
        roles: the models that the warm-up trains and evaluation asks. ``[idm]`` alone learns to name what
            happened between frames that the family cannot generate; RL needs both.
        grpo: group sizes, β, ε, normalisation.
        sampling: temperature and truncation of rollouts.
        optim: learning rate of each phase.
        optimizer: builds the optimiser from parameter groups; the learning rate is ``optim``'s.
        reward: what a rollout is paid for the frozen model's log-probabilities.
        anchor_weight: λ; adds λ · -log P(y | x, z) of the observed y under the sampled z to Phase I.
        idm_state_noise: during warm-up the IDM sees y with up to this share of tokens replaced at random,
            so that it later reads imperfect frames.
        templates: wording of the prompts.
        evaluation: what validation and test do.
        max_tokens_per_forward: rows times the longest of them in one forward pass; None takes a batch whole. An
            update beyond it is taken in parts, each run again in the backward pass: slower, for less memory.
        token_cache: folder that keeps the tokens of visual states from run to run; None keeps none.
        seed: of rollouts and noise; together with a pair's id it fixes each sample. Evaluation has its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: LoraSettings = LoraSettings(),  # noqa: B008 - frozen
        shared_weights: bool = False,
        roles: tuple[str, ...] = ROLES,
        grpo: GRPOConfig = GRPOConfig(),  # noqa: B008
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        optim: PhaseOptimConfigs = PhaseOptimConfigs(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, weight_decay=0.0),
        reward: Reward | None = None,
        anchor_weight: float = 0.0,
        idm_state_noise: float = 0.0,
        templates: PromptTemplates = PromptTemplates(),  # noqa: B008
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
        max_tokens_per_forward: int | None = None,
        token_cache: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sampling.temperature == 0:
            raise ValueError("sampling.temperature must be above 0: a group of equal rollouts teaches nothing")
        if anchor_weight < 0 or not 0 <= idm_state_noise < 1:
            raise ValueError("anchor_weight must be >= 0 and idm_state_noise in [0, 1)")
        if not roles or set(roles) - set(ROLES):
            raise ValueError(f"roles must be among {list(ROLES)}, got {list(roles)}")
        if evaluation.best_of > 1 and len(set(roles)) == 1:
            raise ValueError(f"evaluation.best_of asks both models, got roles {list(roles)}")
        self.backbone, self.lora, self.shared_weights, self.roles = backbone, lora, shared_weights, roles
        self.grpo, self.sampling, self.optim, self.optimizer_factory = grpo, sampling, optim, optimizer
        self.reward: Reward = reward or MeanLogProb()
        self.anchor_weight, self.idm_state_noise = anchor_weight, idm_state_noise
        self.templates, self.evaluation, self.seed = templates, evaluation, seed
        self.max_tokens_per_forward, self.token_cache = max_tokens_per_forward, token_cache
        self.schedule = PhaseSchedule()
        self.scheduled = False  # PhaseSwitch hands its own schedule over
        self.label = "base"  # what the weights of now are called in result tables
        self.tokens_seen = 0
        self.model: torch.nn.Module | None = None
        self._finite = FiniteCheck(self)
        self._denominator: Tensor | None = None  # of the losses since the last optimiser step
        self._updates: dict[int, Update] = {}  # by batch index, while replays are to come
        self._resumed: dict[str, Any] | None = None  # of a checkpoint, until the training starts

    # ---- construction ----------------------------------------------------------------------------
    def configure_model(self) -> None:
        """Load the base once and put the adapters on it."""
        if self.model is not None:
            return
        base = self.backbone.load_model()
        self.base_identity = ckpt.base_identity(base)
        self.adapters = Adapters(base, self.lora, self.backbone.lora_targets, self.shared_weights)
        self.model = self.adapters.model.train()  # Hugging Face loads in eval mode, and Lightning keeps it
        if self.backbone.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": self.adapters.recompute_contexts})
        trainable = {id(p) for name in self.adapters.names for p in self.adapters.parameters(name)}
        # the base is the same on every rank by construction: DDP need not broadcast 4-bit weights
        self._ddp_params_and_buffers_to_ignore = [
            name for name, tensor in [*self.named_parameters(), *self.named_buffers()] if id(tensor) not in trainable
        ]
        self.models = WorldModels(self.backbone, base, self.adapters, self.max_tokens_per_forward)
        self.prompts = PromptBuilder(self.backbone, self.templates)
        self.states = StateTokens(self.backbone, cache_dir=self.token_cache)
        self.evaluator = Evaluator(
            self.models, self.prompts, self.backbone, self.states, self.evaluation, self.sampling, self.roles
        )

    def configure_optimizers(self) -> Any:
        """One optimiser with a parameter group per adapter; the phase moves one of them at a time."""
        groups = [{"params": self.adapters.parameters(name)} for name in self.adapters.trainable]
        optimizer = self.optimizer_factory(groups)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": PhaseLR(optimizer, self.optim), "interval": "step", "name": "lr"},
        }

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        return self.schedule.at(self.trainer.current_epoch)

    def num_policy_iterations(self, phase: str) -> int:
        """How often each batch of rollouts is used in a phase."""
        return self.grpo.num_iterations if phase in RL_PHASES else 1

    def group_size(self, role: str) -> int:
        """G of Phase I (``fwm``) or Phase II (``idm``)."""
        return (self.grpo.idm_group_size if role == "idm" else None) or self.grpo.group_size

    # ---- training --------------------------------------------------------------------------------
    def training_step(self, batch: TransitionBatch, batch_idx: int) -> dict[str, Any]:
        """One micro-batch of the current phase; the loss is a sum, divided at the optimiser step."""
        phase = self.phase.name
        if phase not in RL_PHASES:
            return {
                "loss": self._supervised_loss(batch, labelled_by_idm=phase == "bootstrap"),
                "rollouts": None,
            }
        rollouts = None
        if batch.replay == 0:
            rollouts, update = self.phase_one(batch) if phase == "fwm" else self.phase_two(batch)
            self._updates[batch.index] = update
            self._log_rollouts(rollouts)
        loss = self._policy_loss(phase, batch)
        if batch.replay == self.num_policy_iterations(phase) - 1:
            del self._updates[batch.index]
        return {"loss": loss, "rollouts": rollouts}

    @torch.no_grad()
    def phase_one(self, batch: TransitionBatch) -> tuple[Rollouts, Update]:
        """Phase I, variational information maximisation: the FWM acts, the frozen IDM pays.

        z ~ Q(z | x, y), one a pair; ŷ_k ~ P(y | x, z); r_k = log Q(z | x, ŷ_k).
        """
        before, after = self._tokens(batch.transitions)
        latent = self._latent_actions(batch, before, after)
        actions, latent_rows = self.models.contents("idm", latent), latent.rows()
        prompts = [self.prompts.fwm(x, z) for x, z in zip(before, actions, strict=True)]
        size = self.group_size("fwm")
        sampled = self._sample("fwm", self.adapters.policy("fwm"), batch, prompts, size)
        futures = self.models.contents("fwm", sampled)
        judged = self.models.score(
            "idm",
            self.adapters.frozen("idm"),
            [self.prompts.idm(before[n // size], future) for n, future in enumerate(futures)],
            [latent_rows[n // size] for n in range(len(futures))],
            group_size=size,
        )
        observed = [self.models.grammars["fwm"].complete(y) for y in after]
        return self._rewarded("fwm", batch, prompts, sampled, judged, (actions, futures), observed)

    @torch.no_grad()
    def phase_two(self, batch: TransitionBatch) -> tuple[Rollouts, Update]:
        """Phase II, ELBO maximisation: the IDM acts, the frozen FWM pays.

        ẑ_k ~ Q(z | x, y); r_k = log P(y | x, ẑ_k).
        """
        before, after = self._tokens(batch.transitions)
        prompts = [self.prompts.idm(x, y) for x, y in zip(before, after, strict=True)]
        size = self.group_size("idm")
        sampled = self._sample("idm", self.adapters.policy("idm"), batch, prompts, size)
        actions = self.models.contents("idm", sampled)
        judged = self.models.score(
            "fwm",
            self.adapters.frozen("fwm"),
            [self.prompts.fwm(before[n // size], action) for n, action in enumerate(actions)],
            [self.models.grammars["fwm"].complete(after[n // size]) for n in range(len(actions))],
            group_size=size,
        )
        return self._rewarded("idm", batch, prompts, sampled, judged, (actions, actions), [])

    def _rewarded(
        self,
        phase: str,
        batch: TransitionBatch,
        prompts: list[TokenIds],
        sampled: Completions,
        judged: LogProbs,
        contents: tuple[list[TokenIds], list[TokenIds]],
        observed: list[TokenIds],
    ) -> tuple[Rollouts, Update]:
        """Rewards, group-relative advantages and the reference's log-probabilities."""
        size = self.group_size(phase)
        rewards = self.reward(judged, size)
        self._finite.check_rewards(rewards, batch.transitions)
        scale = self.grpo.advantage_scale
        spread = self._std_over_ranks(rewards) if scale == "batch" else None
        advantages = group_advantages(rewards, size, scale, spread)
        update = Update([p for p in prompts for _ in range(size)], sampled.rows(), advantages, prompts, observed)
        if self.grpo.beta > 0:
            rows = list(range(len(update.prompts)))
            update.reference = self._policy_log_probs(phase, self.adapters.reference(phase), update, rows).values
        self.tokens_seen += int(sampled.mask.sum()) + int(judged.mask.sum())
        actions, generated = contents
        words = [self.backbone.decode_action(z) for z in actions]
        rollouts = Rollouts(phase, batch.transitions, words, generated, sampled, rewards, advantages, size)
        return rollouts, update

    def _policy_loss(self, phase: str, batch: TransitionBatch) -> Tensor:
        """Clipped surrogate + β KL (+ λ anchor), summed over this micro-batch (GRPO eq. 3)."""
        update, longest = self._updates[batch.index], self.models.grammars[phase].free_length
        rows = update.teaching_rows()
        policy = self._policy_log_probs(phase, self.adapters.policy(phase), update, rows, training=True)
        if update.old is None:
            update.old = policy.values.detach()  # on-policy: the ratio is 1, its gradient is not
        reference = None if update.reference is None else update.reference[rows]
        loss, denominator, metrics = grpo_loss(
            policy, update.old, reference, update.advantages[rows], self.grpo, longest
        )
        if left_out := sorted(set(range(len(update.prompts))) - set(rows)):  # they count as the zeros they are
            mask = self.models.token_mask(phase, [update.completions[n] for n in left_out])
            denominator = denominator + token_weights(mask, self.grpo.loss_normalization, longest)[1]
        if phase == "fwm" and self.anchor_weight > 0:
            observed = self.models.score(
                "fwm", self.adapters.policy("fwm"), update.group_prompts, update.observed, training=True
            )
            # an anchor counts as G sequences, so that λ weighs it against the whole group
            weights, _ = token_weights(observed.mask, self.grpo.loss_normalization, longest)
            loss = loss - self.anchor_weight * update.group_size * (weights * observed.values).sum()
            metrics["anchor_nll"] = -observed.mean_per_token().mean()
        self._log(f"{phase}/", metrics, len(batch.transitions))
        self.tokens_seen += int(policy.mask.sum())
        return self._sum_loss(loss, denominator, batch)

    def _supervised_loss(self, batch: TransitionBatch, labelled_by_idm: bool) -> Tensor:
        """SFT: mean log-probability per token, summed over transitions: what the rewards measure, too.

        Warm-up trains both models on labelled triples; Bootstrap trains the FWM on the IDM's own labels.
        """
        before, after = self._tokens(batch.transitions)
        scored: dict[str, LogProbs] = {}
        if labelled_by_idm:
            actions = self.models.contents("idm", self._latent_actions(batch, before, after))
        else:
            actions = [self.backbone.encode_action(_label(t)) for t in batch.transitions]
        if "fwm" in self.roles:
            scored["fwm"] = self.models.score(
                "fwm",
                self.adapters.policy("fwm"),
                [self.prompts.fwm(x, z) for x, z in zip(before, actions, strict=True)],
                [self.models.grammars["fwm"].complete(y) for y in after],
                training=True,
            )
        if "idm" in self.roles and not labelled_by_idm:
            scored["idm"] = self.models.score(
                "idm",
                self.adapters.policy("idm"),
                [self.prompts.idm(x, y) for x, y in zip(before, self._noisy(batch, after), strict=True)],
                [self.models.grammars["idm"].complete(z) for z in actions],
                training=True,
            )
        losses = torch.stack([-each.mean_per_token() for each in scored.values()])  # (models, N)
        names = [f"{role}_nll" for role in scored]
        self._log(f"{self.phase.name}/", dict(zip(names, losses.mean(1), strict=True)), len(before))
        self.tokens_seen += sum(int(each.mask.sum()) for each in scored.values())
        return self._sum_loss(losses.sum(), losses.new_tensor(float(len(before))), batch)

    # ---- one denominator over micro-batches and ranks --------------------------------------------
    def _sum_loss(self, loss: Tensor, denominator: Tensor, batch: TransitionBatch) -> Tensor:
        self._finite.keep(loss, batch.transitions)
        denominator = denominator.detach()
        self._denominator = denominator if self._denominator is None else self._denominator + denominator
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide summed gradients by the global batch's tokens (or rows), before they are clipped.

        Lightning has divided by ``accumulate_grad_batches`` and DDP by the number of ranks; both are
        undone here, so that k micro-batches on W ranks are exactly one batch of k * W times the size.
        """
        if self._denominator is None:
            return
        total = self.trainer.strategy.reduce(self._denominator, reduce_op="sum")
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / total
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._denominator = None
        self._finite.check_step(optimizer)

    def on_train_epoch_end(self) -> None:
        """Nothing of a phase outlives it. (A short last window is not replayed.)"""
        self._updates.clear()

    # ---- parts -----------------------------------------------------------------------------------
    def _tokens(self, transitions: list[Transition]) -> tuple[list[TokenIds], list[TokenIds]]:
        """Content ids of every x and every y."""
        ids = self.states.encode([t.before for t in transitions] + [t.observed for t in transitions], self.device)
        return ids[: len(transitions)], ids[len(transitions) :]

    def _latent_actions(self, batch: TransitionBatch, before: list[TokenIds], after: list[TokenIds]) -> Completions:
        """Z ~ Q(z | x, y), sampled online from the current, frozen IDM."""
        prompts = [self.prompts.idm(x, y) for x, y in zip(before, after, strict=True)]
        return self._sample("idm", self.adapters.frozen("idm"), batch, prompts, 1)

    def _sample(
        self, role: str, adapter: str, batch: TransitionBatch, prompts: list[TokenIds], size: int
    ) -> Completions:
        """``size`` rollouts a prompt; fixed by seed, step and pair, whatever the batch and the rank."""
        return self.models.sample(role, adapter, prompts, self._noise(role, batch, size), self.sampling)

    def _noise(self, use: str, batch: TransitionBatch, size: int) -> Tensor:
        epoch = self.trainer.current_epoch
        keys = [f"{self.seed}|{epoch}|{use}|{t.id}" for t in batch.transitions]
        length = self.models.grammars["idm" if use == "idm" else "fwm"].max_length
        return uniforms(keys, size, length)

    def _noisy(self, batch: TransitionBatch, after: list[TokenIds]) -> list[TokenIds]:
        """Every y with up to ``idm_state_noise`` of its tokens replaced at random."""
        if self.idm_state_noise == 0:
            return after
        allowed = self.models.grammars["fwm"].allowed
        noise = self._noise("noise", batch, 3).view(len(after), 3, -1)
        return [
            replace_tokens(ids, allowed, self.idm_state_noise, numbers)
            for ids, numbers in zip(after, noise, strict=True)
        ]

    def _policy_log_probs(
        self, phase: str, adapter: str, update: Update, rows: list[int], training: bool = False
    ) -> LogProbs:
        return self.models.score(
            phase,
            adapter,
            [update.prompts[n] for n in rows],
            [update.completions[n] for n in rows],
            group_size=self.group_size(phase),
            temperature=self.sampling.temperature,
            training=training,
        )

    # ---- evaluation ------------------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Refuse phases that cannot be trained, before the base is loaded; set the allocator up on CPUs."""
        if stage == "fit" and not self.scheduled:
            raise ValueError("SWIRL trains in phases: add swirl_lightning.callbacks.PhaseSwitch to the callbacks")
        if stage == "fit" and len(set(self.roles)) == 1 and self.schedule.iterations != 0:
            raise ValueError(
                f"roles {list(self.roles)} has one model, and RL needs both: set iterations of PhaseSwitch to 0"
            )
        self._check_precision()
        if self.trainer.strategy.root_device.type == "cpu":
            give_freed_blocks_back()

    def _check_precision(self) -> None:
        """A half-precision Trainer casts all floating-point tensors, and 4-bit weights are packed into such."""
        wanted = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
        dtype = wanted.get(str(self.trainer.precision), self.backbone.dtype)
        if self.backbone.quantization is not None and dtype != self.backbone.dtype:
            raise ValueError(
                f"trainer.precision {self.trainer.precision} would cast the packed 4-bit weights. The base computes in "
                f"backbone.dtype ({self.backbone.dtype}) whatever the Trainer says: leave precision at 32-true"
            )

    def teardown(self, stage: str) -> None:
        """Write the tokens of the states that are new."""
        if self.model is not None:
            self.states.flush()

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics."""
        self.evaluator.start(self.trainer.datamodule, self.device)  # type: ignore[attr-defined]

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: TransitionBatch, batch_idx: int) -> None:
        """Predict states and actions as the paper samples and greedily, and score them."""
        self.evaluator.step(batch.transitions, self.device)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``."""
        self._log_evaluation("test")

    def predict_step(self, batch: TransitionBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Predicted state and action of each transition."""
        return self.evaluator.predict(batch.transitions, self.device) if batch.transitions else []

    def _log_evaluation(self, split: str) -> None:
        for name, value in self.evaluator.compute().items():
            self.log(f"{split}/{name}", value, rank_zero_only=False, sync_dist=False)

    # ---- logging ---------------------------------------------------------------------------------
    def _log_rollouts(self, rollouts: Rollouts) -> None:
        groups = rollouts.rewards.view(-1, rollouts.group_size)
        means = {
            "reward": groups.mean(),
            "reward_std": groups.std(1).mean(),
            "zero_variance_share": zero_variance_share(rollouts.rewards, rollouts.group_size),
            "completion_length": rollouts.completions.mask.sum(1).float().mean(),
        }
        self._log(f"{rollouts.phase}/", means, len(rollouts.transitions))

    def _std_over_ranks(self, values: Tensor) -> Tensor:
        """Standard deviation of (N,) values and those of the other ranks together."""
        values = values.double()
        sums = torch.stack([values.new_tensor(float(len(values))), values.sum(), values.square().sum()])
        count, total, squares = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return ((squares - total.square() / count) / (count - 1)).clamp(min=0).sqrt().float()

    def _log(self, prefix: str, values: dict[str, Tensor], batch_size: int) -> None:
        """Mean over ranks in one reduction."""
        stacked = torch.stack([v.detach().float() for v in values.values()])
        means = self.trainer.strategy.reduce(stacked, reduce_op="mean")
        shown = {"reward", "kl", "fwm_nll", "idm_nll"}
        for name, value in zip(values, means, strict=True):
            self.log(prefix + name, value, prog_bar=name in shown, batch_size=batch_size)

    # ---- checkpoints: adapters, never the base ---------------------------------------------------
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapters' tensors alone."""
        return self.adapters.state_dict()

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Exactly all adapter tensors; see :meth:`Adapters.load_state_dict`."""
        self.adapters.load_state_dict(state_dict)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        config_path: str | Path | None = None,
        **kwargs: Any,
    ) -> SWIRL:
        """The module of a checkpoint, in eval mode and ready for use; no Trainer is needed.

        A checkpoint holds adapters and is never trusted with more: what the module is comes from ``kwargs``, the
        constructor's arguments, or from the run's ``config.yaml``, whose classes are imported and called. So of a
        checkpoint that is not your own, give ``backbone``: then no file beside the checkpoint is read.

        Args:
            checkpoint_path: a file that a run of SWIRL has saved.
            map_location: where the module is to be, as for ``torch.load``.
            config_path: your own configuration with the key ``model``. None takes the ``config.yaml`` in the
                checkpoint's folder or the one above, unless there is a ``backbone``.
            kwargs: constructor arguments; they take the place of the configuration's. With a ``backbone`` and no
                configuration, rank and α of the adapters are the checkpoint's unless ``lora`` is given.

        Raises:
            FileNotFoundError: no such checkpoint, or neither a ``backbone`` nor a configuration.
            ValueError: not a checkpoint of SWIRL, or of another base or other settings of the adapters.

        Example::

            model = SWIRL.load_from_checkpoint("runs/quickstart/checkpoints/last.ckpt")
            model = SWIRL.load_from_checkpoint("last.ckpt", backbone=Liquid("builtin/tiny-liquid", dtype="float32"))
        """
        return restore(cls, checkpoint_path, map_location, config_path, kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs beyond weights and optimiser."""
        checkpoint["swirl"] = {
            "base": {"name": self.backbone.name, "revision": self.backbone.revision, **self.base_identity},
            "label": self.label,
            "tokens_seen": self.tokens_seen,
            "lora": {"r": self.lora.r, "alpha": self.lora.alpha},
            "rng": ckpt.rng_states(),
            "updates": ckpt.over_ranks({index: update.state() for index, update in self._updates.items()}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the base is the one the adapters were trained on; restore the rest.

        Raises:
            ValueError: another base, another ``lora.alpha``, or rollouts in use on another number of ranks.
        """
        state = ckpt.own_state(checkpoint)
        ckpt.check_base(state["base"], self.base_identity, self.backbone.name)
        if "lora" in state:
            ckpt.check_lora(state["lora"], self.lora)
        fitting = False
        if self._trainer is not None:
            ckpt.forget_foreign_files(checkpoint.get("callbacks", {}), self.trainer.checkpoint_callbacks)
            fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and any(state["updates"]) and len(state["updates"]) != self.trainer.world_size:
            raise ValueError(
                f"the checkpoint was written while rollouts of {len(state['updates'])} devices were in use; resume on "
                f"as many instead of {self.trainer.world_size}, or from the end of an epoch"
            )
        self.label, self.tokens_seen = state["label"], state["tokens_seen"]
        self._resumed = state if fitting else None

    def on_train_start(self) -> None:
        """Rollouts once the device is known; random states last, so that nothing before training draws from them."""
        if (state := self._resumed) is not None:
            own = state["updates"][self.trainer.global_rank] if any(state["updates"]) else {}
            self._updates = {index: Update.of(saved, self.device) for index, saved in own.items()}
            ckpt.restore_rng(state["rng"])
            self._resumed = None


def _label(transition: Transition) -> str:
    if not transition.action:
        raise ValueError(
            f"transition {transition.id!r} of the warm-up split has no action: warm-up needs labelled triples"
        )
    return transition.action
