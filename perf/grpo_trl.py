"""The same two steps by TRL's GRPOTrainer, with the frozen other adapter as reward function. Text only.

TRL keeps one policy and its reference; the actions of Phase I are given, not sampled, so their time is not counted.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import use_adapter

from perf.common import SPECIALS, Case, Ids, Pairs, randomize, templates
from perf.meter import Meter
from perf.plain import log_probs
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.prompts import PromptBuilder


class _Step(TrainerCallback):
    """Meter of a step: generation, rewards, update and optimiser."""

    def __init__(self, meter: Meter, phase: str) -> None:
        self.meter, self.phase = meter, phase

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.start(self.phase)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.meter.stop()


def run(case: Case, folder: Path, device: str, rounds: int, profiled: bool) -> tuple[Meter, dict[str, float]]:
    """Run ``rounds`` steps of Phase I, then of Phase II."""
    backbone = Ids(case, folder)
    lora = LoraConfig(r=case.rank, lora_alpha=2 * case.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(backbone.load_model(), lora, "default").to(device)
    model.add_adapter("judge", lora)
    randomize(p for name, p in model.named_parameters() if "lora_" in name)
    tokenizer = _tokenizer(case.vocabulary)
    prompts = PromptBuilder(backbone, templates(case))
    pairs = Pairs(case).load_split("state_only")
    before = [backbone.encode_text(str(t.before)) for t in pairs]
    after = [backbone.encode_text(str(t.after)) for t in pairs]
    draw = random.Random(1)
    actions = [[draw.randrange(SPECIALS, case.vocabulary) for _ in range(case.action)] for _ in pairs]

    def reward_fwm(completion_ids: list[TokenIds], pair: list[int], **_: Any) -> list[float]:
        """Compute the log-probability of z after x and each ŷ, per token."""
        asked = [prompts.idm(before[n], future) for n, future in zip(pair, completion_ids, strict=True)]
        return judge(asked, [actions[n] for n in pair])

    def reward_idm(completion_ids: list[TokenIds], pair: list[int], **_: Any) -> list[float]:
        """Compute the log-probability of y after x and each ẑ, per token."""
        asked = [prompts.fwm(before[n], action) for n, action in zip(pair, completion_ids, strict=True)]
        return judge(asked, [after[n] for n in pair])

    @torch.no_grad()
    def judge(asked: list[TokenIds], targets: list[TokenIds]) -> list[float]:
        with use_adapter(model, "judge"):
            rewards: list[float] = log_probs(model, asked, targets).mean(1).tolist()
        return rewards

    meter = Meter(device, profiled)
    given = {
        "fwm": [prompts.fwm(x, z) for x, z in zip(before, actions, strict=True)],
        "idm": [prompts.idm(x, y) for x, y in zip(before, after, strict=True)],
    }
    for phase, reward, length in (("fwm", reward_fwm, case.completion), ("idm", reward_idm, case.action)):
        rows = {"prompt": [backbone.decode_text(ids) for ids in given[phase]], "pair": list(range(case.pairs))}
        with tempfile.TemporaryDirectory() as output:
            config = GRPOConfig(
                output_dir=output,
                per_device_train_batch_size=case.pairs * case.group_size,
                num_generations=case.group_size,
                max_completion_length=length,
                generation_kwargs={"suppress_tokens": list(range(SPECIALS))},
                beta=case.beta,
                learning_rate=1e-5,
                max_steps=rounds,
                gradient_checkpointing=False,
                bf16=case.dtype == "bfloat16",
                use_cpu=device == "cpu",
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            )
            trainer = GRPOTrainer(
                model,
                reward_funcs=reward,
                args=config,
                train_dataset=Dataset.from_dict(rows),
                processing_class=tokenizer,
                callbacks=[_Step(meter, phase)],
            )
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()  # TRL makes adapters on 4-bit bases bfloat16
            _book(trainer, meter)
            trainer.train()
        model.delete_adapter("ref")
    return meter, {}


def _book(trainer: GRPOTrainer, meter: Meter) -> None:
    """Measure the time of generation, rewards and the reference, by the trainer's own methods."""
    scoring = trainer._get_per_token_logps_and_entropies

    def reference(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return scoring(*args, **kwargs)
        with meter.part("reference"):
            return scoring(*args, **kwargs)

    trainer._get_per_token_logps_and_entropies = reference
    for name, part in (("_generate", "sample"), ("_calculate_rewards", "reward")):
        setattr(trainer, name, _within(meter, part, getattr(trainer, name)))


def _within(meter: Meter, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with meter.part(part):
            return call(*args, **kwargs)

    return timed


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer in which every id is the word of its number."""
    words = ["<pad>", "<eos>", "<bos>", *map(str, range(SPECIALS, vocabulary))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )
