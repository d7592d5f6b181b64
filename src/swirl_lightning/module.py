"""SWIRL as a LightningModule: warm-up, Phase I and Phase II (arXiv 2602.06130)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn

from swirl_lightning.adapters import AdapterConfig
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.checkpoints import state as ckpt
from swirl_lightning.checkpoints.learned import restore_states, states_of
from swirl_lightning.data.batch import TransitionBatch, places
from swirl_lightning.engine.cpu import give_freed_blocks_back
from swirl_lightning.engine.drawing import GREEDY, SamplingConfig
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.noise import global_seed, replace_tokens, uniforms
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.pretrained_module import PretrainedModule
from swirl_lightning.prompts import PromptTemplates
from swirl_lightning.ranks import over_ranks
from swirl_lightning.roles import Role
from swirl_lightning.rollout_engines import RolloutEngine
from swirl_lightning.schedule import Phase, PhaseLR, PhaseName, PhaseOptimConfig, PhaseSchedule
from swirl_lightning.training import trainer_checks as checks
from swirl_lightning.training.finite import FiniteCheck
from swirl_lightning.training.grpo import GRPOConfig
from swirl_lightning.training.known_tokens import KnownTokens
from swirl_lightning.training.learners import GRPO, Learner, Policy
from swirl_lightning.training.losses import Loss, SharedDenominator, sft_log_probs
from swirl_lightning.training.rewards import MeanLogProb, Reward, Scored, rewarded
from swirl_lightning.training.rollouts import Rollouts, Update, latent_actions, name_actions
from swirl_lightning.training.step_metrics import StepMetrics
from swirl_lightning.transition import Transition


class SWIRL(PretrainedModule):
    """A forward world model and an inverse dynamics model that improve each other from state-only pairs.

    Args:
        backbone: the model family and its checkpoint.
        lora: size and place of the adapters.
        shared_weights: one adapter plays both models (less memory, less stable). A checkpoint of such a run, its
            warm-up for example, also starts a run with separate weights: both models begin as that adapter.
        roles: the models that are trained in the warm-up and evaluated. ``[idm]`` alone learns to name actions
            between frames that the family cannot generate; RL needs both.
        grpo: group sizes, β, ε, normalisation.
        sampling: temperature and truncation of what is sampled: latent actions z, predictions, and rollouts.
        fwm_sampling: the same for the rollouts of Phase I; None for ``sampling``, with GRPO without top-p and top-k,
            which bias its ratios and its KL.
        idm_sampling: the same for the rollouts of Phase II.
        optim: learning rate of each phase.
        optimizer: builds the optimiser from parameter groups; the learning rate is ``optim``'s.
        reward: computes the rewards of rollouts; None for the paper's, log-probabilities under the frozen model.
        known_tokens: in Phase I, log Q is -100 nats a token after a ŷ with a token that neither x, y nor a state of the
            labelled triples has, so that the FWM is not rewarded for writing the action into the state.
        learner: computes the loss from rollouts and their rewards; None for
            :class:`swirl_lightning.training.learners.GRPO`.
        anchor_weight: λ; adds λ · -log P(y | x, z) of the observed y under the sampled z to Phase I. Pairs whose action
            is counterfactual count as 0. Unless ``loss_normalization`` is ``sequence``, each token weighs alike.
        labelled_weight: likewise of the triples of ``data.labelled_per_batch``, relative to the loss of the pairs.
        bootstrap_labels: actions of the phase ``bootstrap``. ``online`` samples them anew in each epoch; ``once`` takes
            the IDM's likeliest, token by token, the same in every epoch: so the authors annotate their pairs.
        idm_state_noise: on labelled triples the IDM is trained to read y with up to this share of tokens replaced at
            random, so that it later reads imperfect frames.
        templates: wording of the prompts.
        evaluation: settings of validation and test.
        max_tokens_per_forward: tokens in one forward pass that scores or trains; a prompt that a group shares counts
            once. None takes a batch whole. An update beyond it runs in parts, each of them again in the backward pass:
            slower, with less memory.
        max_cached_tokens: tokens whose keys and values are held at one time while sampling: each prompt once, with its
            rollouts at their longest. Within it, the rollouts of an optimiser step are sampled together, whatever the
            batch size. None samples batch by batch, within ``max_tokens_per_forward``.
        rollout_engine: samples all that is sampled; None for ours.
        token_cache: folder that keeps the tokens of states from run to run; None keeps none.
        seed: of rollouts and noise; together with a pair's id it fixes each sample. None for that of
            ``seed_everything``. Evaluation has its own, so that runs are tested alike.
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: AdapterConfig = AdapterConfig(),  # noqa: B008 - frozen
        shared_weights: bool = False,
        roles: tuple[str, ...] = ("fwm", "idm"),
        grpo: GRPOConfig = GRPOConfig(),  # noqa: B008
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        fwm_sampling: SamplingConfig | None = None,
        idm_sampling: SamplingConfig | None = None,
        optim: PhaseOptimConfig = PhaseOptimConfig(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, weight_decay=0.0),
        reward: Reward | None = None,
        known_tokens: bool = False,
        learner: Learner | None = None,
        anchor_weight: float = 0.0,
        labelled_weight: float = 1.0,
        bootstrap_labels: Literal["online", "once"] = "online",
        idm_state_noise: float = 0.0,
        templates: PromptTemplates = PromptTemplates(),  # noqa: B008
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
        max_tokens_per_forward: int | None = None,
        max_cached_tokens: int | None = None,
        rollout_engine: RolloutEngine | None = None,
        token_cache: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            backbone,
            lora,
            shared_weights,
            roles,
            sampling,
            templates,
            evaluation,
            max_tokens_per_forward,
            max_cached_tokens,
            rollout_engine,
            token_cache,
        )
        self.grpo, self.optim, self.optimizer_factory = grpo, optim, optimizer
        self.reward: Reward = reward or MeanLogProb()
        self.learner: Learner = learner or GRPO()
        self.known_tokens = KnownTokens(self, known_tokens)
        rollouts = sampling.untrimmed if self.learner.untrimmed else sampling
        self.policy_sampling = {Role.FWM: fwm_sampling or rollouts, Role.IDM: idm_sampling or rollouts}
        if any(config.temperature == 0 for config in (sampling, *self.policy_sampling.values())):
            raise ValueError("the temperature of rollouts must be above 0: a group of equal rollouts teaches nothing")
        if bootstrap_labels not in ("online", "once"):
            raise ValueError(f"bootstrap_labels must be 'online' or 'once', got {bootstrap_labels!r}")
        self.anchor_weight, self.labelled_weight, self.idm_state_noise = anchor_weight, labelled_weight, idm_state_noise
        self.bootstrap_labels, self.seed = bootstrap_labels, global_seed() if seed is None else seed
        check_ranges(
            "model", vars(self), idm_state_noise="[0, 1)", anchor_weight="[0, inf)", labelled_weight="[0, inf)"
        )
        self.schedule, self.scheduled = PhaseSchedule(), False  # PhaseSwitch hands its own over
        self.tokens_seen = 0
        self._finite, self._denominator, self._metrics = FiniteCheck(self), SharedDenominator(), StepMetrics()
        self._updates: dict[int, Update] = {}  # by batch index, until their last use
        self._rollouts: dict[int, Rollouts] = {}  # by batch index, until their first use
        self._resumed: dict[str, Any] | None = None  # of a checkpoint, until the training starts

    def configure_optimizers(self) -> Any:
        """One optimiser with a parameter group per adapter; the phase moves one of them at a time."""
        optimizer = self.optimizer_factory([{"params": self.adapters.parameters(n)} for n in self.adapters.trainable])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": PhaseLR(optimizer, self.optim), "interval": "step", "name": "lr"},
        }

    @property
    def phase(self) -> Phase:
        """Phase of the current epoch."""
        return self.schedule.at(self.trainer.current_epoch)

    def num_policy_iterations(self, phase: PhaseName) -> int:
        """Number of uses of each batch of rollouts in a phase."""
        return 1 if phase.policy is None else self.grpo.num_iterations

    def group_size(self, role: Role) -> int:
        """Return G of Phase I (FWM) or Phase II (IDM)."""
        return (self.grpo.idm_group_size if role == Role.IDM else None) or self.grpo.group_size

    # ---- training --------------------------------------------------------------------------------
    def training_step(self, batch: TransitionBatch, batch_idx: int) -> dict[str, Any]:
        """Run one micro-batch of the current phase; the loss is a sum, divided at the optimiser step."""
        phase, rollouts = self.phase.name, None
        if phase.policy is None:
            loss = self._supervised(batch, labelled_by_idm=phase == PhaseName.BOOTSTRAP)
        else:
            if batch.window:
                self._roll_out(phase.policy, batch.window)
            rollouts = self._rollouts.pop(batch.index, None)
            loss = self._update_policy(phase.policy, batch)
            if batch.replay == self.num_policy_iterations(phase) - 1:
                del self._updates[batch.index]
        self._finite.keep(loss.total, batch.transitions)
        if batch.labelled:
            self._add_labelled(loss, phase.policy or Role.FWM, batch.labelled)
        self._denominator.add(loss.denominator)
        self.tokens_seen += loss.tokens
        if phase.policy is not None:
            prefix, count = f"{phase.policy}/", loss.denominator.detach().float()
            self._metrics.add(prefix, loss.metrics, len(batch) if loss.weight is None else loss.weight)
            self._metrics.add(prefix, {"loss": loss.total / count.where(count != 0, 1)}, count)
        if self.trainer.is_last_batch:  # a short last window is not replayed
            self._updates.clear()
            self._rollouts.clear()
        return {"loss": loss.total, "rollouts": rollouts}

    def phase_one(self, batches: Sequence[list[Transition]]) -> Iterator[tuple[Samples, Samples, LogProbs]]:
        """Phase I, variational information maximisation: the FWM is the policy, the frozen IDM gives the reward.

        z ~ Q(z | x, y), one a pair, or the pair's counterfactual action; ŷ_k ~ P(y | x, z); r_k = log Q(z | x, ŷ_k).
        The batches are sampled together; then gives z, ŷ and log Q of each.
        """
        fwm, idm = self.models.fwm, self.models.idm.reward_model
        transitions = list(chain.from_iterable(batches))
        x, y = self.encode_pairs(transitions)
        z = latent_actions(idm, transitions, x, y, self._keys("idm", transitions), self.sampling, self.backbone)
        sampling, group = self.policy_sampling[Role.FWM], self.group_size(Role.FWM)
        y_hat = fwm.sample(x, z, self._keys("fwm", transitions), sampling, group)
        for part in places(batches):
            judged = idm.log_prob(z[part], x[part], y_hat[part])
            yield z[part], y_hat[part], self.known_tokens.judge(judged, x[part], y[part], y_hat[part])

    def phase_two(self, batches: Sequence[list[Transition]]) -> Iterator[tuple[Samples, Samples, LogProbs]]:
        """Phase II, ELBO maximisation: the IDM is the policy, the frozen FWM gives the reward.

        ẑ_k ~ Q(z | x, y); r_k = log P(y | x, ẑ_k). The batches are sampled together; then gives ẑ twice and log P of
        each.
        """
        fwm, idm = self.models.fwm.reward_model, self.models.idm
        transitions = list(chain.from_iterable(batches))
        x, y = self.encode_pairs(transitions)
        sampling, group = self.policy_sampling[Role.IDM], self.group_size(Role.IDM)
        z_hat = idm.sample(x, y, self._keys("idm", transitions), sampling, group)
        for part in places(batches):
            yield z_hat[part], z_hat[part], fwm.log_prob(y[part], x[part], z_hat[part])

    @torch.no_grad()
    def _roll_out(self, role: Role, window: list[TransitionBatch]) -> None:
        """Sample and reward all micro-batches of an optimiser step; keep what their policy updates need."""
        phase, policy = self.phase_one if role == Role.FWM else self.phase_two, self._policy(role)
        found = []
        at_once = [window] if self.max_cached_tokens else [[batch] for batch in window]
        rolled_out = chain.from_iterable(phase([batch.transitions for batch in batches]) for batches in at_once)
        for batch, (actions, sampled, judged) in zip(window, rolled_out, strict=True):
            scored = Scored(role, batch.transitions, sampled, judged, self.backbone, actions)
            rewards = rewarded(self.reward, scored)
            self._metrics.add_values(f"{role}/rewards/", scored.metrics)
            self.tokens_seen += int(sampled.completions.mask.sum()) + int(judged.mask.sum())
            found.append((batch, actions, sampled, rewards))
        earned = [rewards for *_, rewards in found]
        self._finite.check_rewards(torch.cat(earned), [t for batch in window for t in batch.transitions])
        step = self.learner.advantages(policy, [drawn for _, _, drawn, _ in found], earned)
        for (batch, actions, sampled, rewards), advantages in zip(found, step, strict=True):
            update = self.learner.update(policy, sampled, advantages)
            update.check()
            update.temperature = policy.temperature
            rows = [n for n, t in enumerate(batch.transitions) if not t.counterfactual]
            if role == Role.FWM and self.anchor_weight > 0 and rows:
                y = self.states.encode([batch.transitions[n].observed for n in rows], self.device)
                complete = self.models.fwm.grammar.complete
                update.anchor = [sampled.prompts[n] for n in rows], [complete(content) for content in y]
            self._updates[batch.index] = update
            drawn = sampled.contents, sampled.completions
            words = [self.backbone.decode_action(z) for z in actions.contents]
            rollouts = Rollouts(role, batch.transitions, words, *drawn, rewards, advantages, sampled.group_size)
            self._rollouts[batch.index] = rollouts
            self._metrics.add(f"{role}/", rollouts.summary(policy.model.grammar.eos), len(batch))

    def _policy(self, role: Role, temperature: float | None = None) -> Policy:
        present = self.policy_sampling[role].temperature
        return Policy(self.models.of(role), self.grpo, temperature or present, self.trainer.strategy)

    def _update_policy(self, role: Role, batch: TransitionBatch) -> Loss:
        """Compute the policy's loss on this micro-batch's rollouts, with the anchor."""
        update = self._updates[batch.index]
        policy = self._policy(role, update.temperature)
        loss = self.learner.loss(policy, update)
        nll, rows = loss.total.new_zeros(()), 0 if update.anchor is None else len(update.anchor[0])
        if update.anchor is not None:
            observed = policy.model.score_ids(*update.anchor, training=True)
            nll = -observed.mean_per_token().mean()
            loss.add_supervised(observed, self.anchor_weight * rows / update.pairs, policy.longest)  # 0 for the others
        if role == Role.FWM and self.anchor_weight > 0:  # of no row, too: another rank may have some
            self._metrics.add(f"{role}/", {"anchor_nll": nll}, rows)
        return loss

    def _add_labelled(self, loss: Loss, role: Role, transitions: list[Transition]) -> None:
        """Add labelled triples to the pairs of a phase: supervised training of its policy."""
        x, y = self.encode_pairs(transitions)
        actions = [self.backbone.encode_action(t.label) for t in transitions]
        scored = sft_log_probs(self.models, x, actions, y, (role,), self._noisy(transitions, y))[role]
        loss.add_supervised(scored, self.labelled_weight, self.models.grammars[role].free_length)
        nll = -scored.mean_per_token().mean()
        self._finite.keep(nll, transitions)
        self._metrics.add(f"{self.phase.name}/", {"labelled_nll": nll}, len(transitions))

    def _supervised(self, batch: TransitionBatch, labelled_by_idm: bool) -> Loss:
        """Compute the SFT loss: mean log-probability per token, as in the rewards, summed over transitions.

        Warm-up trains both models on labelled triples; Bootstrap trains the FWM on the IDM's own labels, and on the
        labelled triples that the data mix in.
        """
        x, y = self.encode_pairs(batch.transitions)
        named = {}
        if labelled_by_idm:
            how = self._keys("idm", batch.transitions), GREEDY if self.bootstrap_labels == "once" else self.sampling
            named = name_actions(self.models.idm.reward_model, batch.transitions, x, y, *how)
        actions = [
            named[n] if n in named else self.backbone.encode_action(t.label) for n, t in enumerate(batch.transitions)
        ]
        roles = (Role.FWM,) if labelled_by_idm else self.roles
        scored = sft_log_probs(self.models, x, actions, y, roles, self._noisy(batch.transitions, y))
        losses = torch.stack([-each.mean_per_token() for each in scored.values()])  # (models, N)
        metrics = dict(zip([f"{role}_nll" for role in scored], losses.mean(1), strict=True))
        self._metrics.add(f"{self.phase.name}/", metrics, len(batch))
        tokens = sum(int(each.mask.sum()) for each in scored.values())
        return Loss(losses.sum(), losses.new_tensor(float(len(batch))), len(batch), "sequence", metrics, tokens)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop if a value is not finite, and log the step."""
        self._finite.check_step(optimizer)
        self._metrics.add("", self.adapters.gradient_norms(), 1)
        self._metrics.log(self)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step, and stop if the optimiser made a weight of it that is not finite."""

        def backward() -> Any:
            loss = optimizer_closure()
            self._denominator.divide(optimizer, self.trainer)  # before callbacks see the gradients
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, backward)
        self._finite.check_weights(optimizer)

    # ---- parts -----------------------------------------------------------------------------------
    def _keys(self, use: str, transitions: list[Transition]) -> list[str]:
        """Return names of random numbers, fixed by seed, epoch and pair, whatever the batch and the rank."""
        return [f"{self.seed}|{self.trainer.current_epoch}|{use}|{t.id}" for t in transitions]

    def _noisy(self, transitions: list[Transition], after: list[TokenIds]) -> list[TokenIds]:
        """Replace up to ``idm_state_noise`` of the tokens of every y at random."""
        if self.idm_state_noise == 0:
            return after
        grammar, share = self.models.fwm.grammar, self.idm_state_noise
        # by step: a label may come several times in an epoch
        keys = [f"{self.seed}|{self.trainer.global_step}|noise|{t.id}" for t in transitions]
        noise = uniforms(keys, 3, grammar.max_length).view(len(after), 3, -1)
        return [replace_tokens(y, grammar.content_ids, share, drawn) for y, drawn in zip(after, noise, strict=True)]

    def setup(self, stage: str) -> None:
        """Refuse settings that cannot be trained, before the base is loaded; set up the allocator on CPUs."""
        if stage == "fit":
            checks.check_fit(self)
            self._resumed = None  # of a fit that failed before its training began
        super().setup(stage)
        checks.check_trainer(self.trainer)
        checks.check_precision(str(self.trainer.precision), self.backbone)
        checks.check_seeds({"data": getattr(self.trainer, "datamodule", None), "model": self})
        give_freed_blocks_back(self.trainer.strategy.root_device)

    # ---- checkpoints -----------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that a resumed run needs beyond weights and optimiser."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["swirl"] |= {
            "tokens_seen": self.tokens_seen,
            "rng": ckpt.rng_states(),
            "updates": over_ranks({index: update.state() for index, update in self._updates.items()}),
            "window": over_ranks(self._denominator.state(self, metrics=self._metrics.state())),
            "learned": states_of(self),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the checkpoint, and restore that state.

        Raises:
            ValueError: another base or other adapters, or saved within a step on another number of ranks.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["swirl"]
        self.tokens_seen = state["tokens_seen"]
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            ckpt.check_ranks(state, self.trainer.world_size)
            with ckpt.as_written("the optimiser's options"):
                ckpt.take_no_options(checkpoint, partial(checks.dummy_optimizer, self.optimizer_factory))
            self._resumed = state

    def on_train_start(self) -> None:
        """Restore rollouts once the device is known, and random states last: no draw comes before training."""
        for part in (self._denominator, self._metrics, self._finite, self._updates, self._rollouts, self.known_tokens):
            part.clear()  # of a fit that was stopped within a step
        states_of(self)  # refused before the work is done
        checks.check_parameters(self.trainer.optimizers, self)
        if (state := self._resumed) is not None:
            with ckpt.as_written("the rollouts, summed gradients or random states"):
                own = state["updates"][self.trainer.global_rank] if any(state["updates"]) else {}
                self._updates = {index: Update.of(saved, self.device) for index, saved in own.items()}
                if any(window := state.get("window", [])):
                    self._denominator.restore(self, begun := window[self.trainer.global_rank])
                    self._metrics.restore(begun.get("metrics", {}), self.device)
                restore_states(state.get("learned", {}), self)
                ckpt.restore_rng(state["rng"])
            ckpt.check_optimizer(state, self.trainer.optimizers[0], self.optimizer_factory)
            self._resumed = None
