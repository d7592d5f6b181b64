"""LoRA adapters on the one frozen base: two models, their references, and the switch between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from swirl_lightning.engine.lora import cast, fuse, uncast
from swirl_lightning.engine.quantization import dequantized, merge, mergeable, unmerge
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.writing import written_to
from swirl_lightning.roles import ROLES, AdapterName, Role

_PEFT_PREFIX = "base_model.model."  # of a module's name
_LONGEST_REASON = 200  # characters of a message of PEFT


@dataclass(frozen=True)
class AdapterConfig:
    """Size and place of every adapter.

    Attributes:
        r: rank.
        alpha: LoRA's α; the update is scaled by α / r.
        dropout: on the input of each adapter, in supervised training alone: GRPO compares log-probabilities, and masks
            would count as a change of the policy. They come from each process's own generator: with dropout, several
            devices do not train the weights of one.
        target_modules: PEFT's ``target_modules``; None takes the backbone's own choice.

    Raises:
        ValueError: a number is out of range or none, or ``target_modules`` are neither names nor a regular expression.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        check_ranges("model.lora", vars(self), r="whole [1, 65536]", alpha="whole [1, inf)", dropout="[0, 1)")
        for name in ("r", "alpha"):
            if type(getattr(self, name)) is not int:  # checkpoints and exported folders hold Python's own numbers alone
                raise ValueError(f"model.lora.{name} must be an int, got {getattr(self, name)!r}")
        targets = self.target_modules
        if targets is None:
            return
        if not targets:
            raise ValueError("model.lora.target_modules is empty; null takes the backbone's own choice")
        if isinstance(targets, str):
            try:
                re.compile(targets)
            except (re.error, RecursionError) as error:
                raise ValueError(
                    f"model.lora.target_modules is no regular expression ({error}): {targets[:60]!r}"
                ) from None
        elif not isinstance(targets, list | tuple) or not all(isinstance(name, str) for name in targets):
            raise ValueError(f"model.lora.target_modules must be names of modules, got {targets!r}")


class Adapters:
    """Named LoRA adapters on one frozen base, and the adapter of each role.

    With separate weights there are ``fwm``, ``idm`` and their frozen references ``fwm_ref``, ``idm_ref``.
    With shared weights one adapter ``world`` is both models, ``world_ref`` its reference, and
    ``world_reward`` the copy that gives the reward: frozen at the start of each phase, as the other
    model is when weights are separate.

    The parameters that train are fixed here once, so that DDP may wrap the model at any time: gradients are never
    switched on and off. A switch changes the active name alone.

    Args:
        model: the frozen base.
        config: size and place.
        default_targets: target modules of the backbone.
        shared: one adapter for both models.
        trunk: the part of the base whose hidden states are used; adapters beside it would have no effect.

    Raises:
        ValueError: the target modules are not in the base, cannot be adapted, or lie beside the trunk.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: AdapterConfig,
        default_targets: str | Sequence[str],
        shared: bool = False,
        trunk: nn.Module | None = None,
    ) -> None:
        # imported here, for it takes as long as torch itself, and a command line that is refused needs no adapter
        from peft import LoraConfig, PeftModel, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        targets = config.target_modules or default_targets
        place = next((name for name, module in model.named_modules() if module is trunk), "")
        lora = LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=_beside(model, place),
            task_type="CAUSAL_LM",
        )
        self.shared = shared
        self._policy = {role: AdapterName("world" if shared else role.value) for role in ROLES}
        self._reward = {role: AdapterName("world_reward" if shared else role.value) for role in ROLES}
        self._reference = {role: AdapterName(f"{self._policy[role]}_ref") for role in ROLES}
        self.trainable = tuple(dict.fromkeys(self._policy.values()))
        frozen = [*self._reference.values(), *self._reward.values()]
        self.names = tuple(dict.fromkeys([*self.trainable, *frozen]))

        try:
            self.model: PeftModel = get_peft_model(model, lora, adapter_name=self.names[0])
            for name in self.names[1:]:
                self.model.add_adapter(name, lora)
        except ValueError as error:  # it prints the module, over many lines
            pattern = f"the pattern {targets!r}, which the whole name of a module has to match,"
            told = pattern if isinstance(targets, str) and targets != "all-linear" else targets
            raise ValueError(
                f"model.lora.target_modules: {told} cannot be adapted; name layers, such as [q_proj, v_proj] "
                f"({' '.join(str(error).split())[:_LONGEST_REASON]})"
            ) from error
        layers: dict[str, Any] = {
            path: module for path, module in self.model.named_modules() if isinstance(module, BaseTunerLayer)
        }
        named = [] if isinstance(targets, str) else targets
        if unknown := [name for name in named if not any(f".{path}".endswith(f".{name}") for path in layers)]:
            where = f" in {place}" if place else ""
            raise ValueError(f"the base has no modules {unknown} to adapt{where}: mend model.lora.target_modules")
        within = f"{_PEFT_PREFIX}{place}."
        if useless := [path for path in layers if place and not path.startswith(within)]:
            told = ", ".join(path.removeprefix(_PEFT_PREFIX) for path in useless[:3])
            raise ValueError(f"model.lora.target_modules: adapters on {told} have no effect; name modules of {place}")
        self._layers = list(layers.values())
        self._dropouts = [module for module in self.model.modules() if isinstance(module, nn.Dropout) and module.p]
        fuse(self._layers)
        self._params = {name: dict(_parameters(layers, name)) for name in self.names}
        for name in self.names:
            for parameter in self._params[name].values():
                parameter.requires_grad_(name in self.trainable)
        for layer in self._layers:
            layer._active_adapter = [self.names[0]]
        for name in self.names[len(self.trainable) :]:
            self.copy(self._policy_of(name), name)

    # ---- roles -----------------------------------------------------------------------------------
    def policy(self, role: Role) -> AdapterName:
        """Return the name of the adapter that trains as a role."""
        return self._policy[role]

    def reference(self, role: Role) -> AdapterName:
        """Return the name of the frozen copy to which the KL of a role is taken."""
        return self._reference[role]

    def reward(self, role: Role) -> AdapterName:
        """Return the name of the adapter that plays a role while the other role is the policy."""
        return self._reward[role]

    @contextmanager
    def use(self, name: AdapterName, training: bool = False, dropout: bool = True) -> Iterator[None]:
        """Run the model as an adapter, in eval mode or in train mode, with ``dropout`` or without; then restore it."""
        before = [layer._active_adapter for layer in self._layers]
        was_training = self.model.training
        for layer in self._layers:
            layer._active_adapter = [name]
        if was_training != training:
            self.model.train(training)
        dropping = [module.training for module in self._dropouts]
        for module in self._dropouts:
            module.train(training and dropout)
        try:
            yield
        finally:
            for module, was in zip(self._dropouts, dropping, strict=True):
                module.train(was)
            for layer, active in zip(self._layers, before, strict=True):
                layer._active_adapter = active
            if was_training != training:
                self.model.train(was_training)

    @contextmanager
    def merged(self, name: AdapterName) -> Iterator[None]:
        """Make an adapter ready for many small products, within :meth:`use` and without gradient.

        It is added to the weights where that is exact enough; elsewhere it is cast once to the dtype of computation. A
        decode step multiplies few rows, and an adapter's two thin products cost it about as much as the base's one.
        """
        layers = [layer for layer in self._layers if mergeable(layer.get_base_layer())]
        others = [layer for layer in self._layers if not mergeable(layer.get_base_layer())]
        try:
            with torch.autocast("cpu", enabled=False):  # which would round the sums; these layers are on a CPU
                for layer in layers:
                    merge(layer.get_base_layer(), layer.get_delta_weight(name))
                    layer._disable_adapters = True
            for layer in others:
                cast(layer, name, self.model.dtype)
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False
                unmerge(layer.get_base_layer())
            for layer in others:
                uncast(layer)

    def recompute_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the ``context_fn`` of gradient checkpointing, which recomputes with the adapter of the forward pass.

        The backward pass runs after :meth:`use` has ended. Without this, a layer would silently be recomputed with
        the adapter that is active then.
        """
        active, training = self._layers[0]._active_adapter[0], self.model.training
        return nullcontext(), self.use(active, training, any(module.training for module in self._dropouts))

    # ---- weights ---------------------------------------------------------------------------------
    def gradient_norms(self) -> dict[str, Tensor]:
        """Return ``<adapter>/grad_norm``, the norm of the gradients of each adapter that has some."""
        held = {name: [p.grad for p in self.parameters(name) if p.grad is not None] for name in self.trainable}
        return {f"{name}/grad_norm": get_total_norm(gradients) for name, gradients in held.items() if gradients}

    def parameters(self, name: AdapterName) -> list[nn.Parameter]:
        """Return the parameters of one adapter, by name and not by requires_grad."""
        return list(self._params[name].values())

    @torch.no_grad()
    def copy(self, source: AdapterName, target: AdapterName) -> None:
        """Overwrite adapter ``target`` with ``source``."""
        for key, parameter in self._params[target].items():
            parameter.copy_(self._params[source][key])

    def refresh_references(self) -> None:
        """Copy the policies to their references, at the start of an iteration."""
        for role in ROLES:
            self.copy(self._policy[role], self._reference[role])

    def refresh_rewards(self) -> None:
        """Freeze the copy that gives the reward, at the start of a phase; only shared weights have one."""
        if self.shared:
            self.copy(AdapterName("world"), AdapterName("world_reward"))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of all adapters, none of the base, as ``<adapter>.<module>.<lora_A|lora_B>``."""
        return {f"{n}.{k}": p.detach() for n, params in self._params.items() for k, p in params.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load tensors of :meth:`state_dict`.

        Raises:
            ValueError: keys or shapes differ: the checkpoint belongs to another base or other LoRA settings; or a
                tensor holds other values than finite numbers.
        """
        own = {f"{n}.{k}": p for n, params in self._params.items() for k, p in params.items()}
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        wrong = [
            f"{k}: {tuple(state[k].shape)} in the checkpoint, {tuple(p.shape)} here"
            for k, p in own.items()
            if k in state and state[k].shape != p.shape
        ]
        if missing or extra or wrong:
            raise ValueError(
                "the checkpoint's adapters do not fit this base: "
                f"{len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}, "
                f"{len(wrong)} of another shape {wrong[:3]}. "
                "Use the same model_name_or_path, shared_weights and lora settings as the run that wrote it."
            )
        broken = [
            k for k, p in own.items() if not (state[k].is_floating_point() and state[k].to(p.dtype).isfinite().all())
        ]
        if broken:
            raise ValueError(
                f"{len(broken)} of {len(own)} adapter tensors in the checkpoint hold other values than finite numbers, "
                f"such as {broken[0]}: the training that wrote it had failed, or it is damaged; take an earlier one"
            )
        for key, parameter in own.items():
            parameter.copy_(state[key])

    def export(self, folder: str | Path) -> None:
        """Write the trained adapters in plain PEFT format, ``folder/<adapter>/``, as safetensors.

        Raises:
            OSError: they cannot be written, as on a full disk.
        """
        with written_to(folder):
            self.model.save_pretrained(str(folder), selected_adapters=list(self.trainable), save_embedding_layers=False)

    def exported_state(self, folder: str | Path, device: str | torch.device) -> dict[str, Tensor]:
        """Read what :meth:`export` has written as a state of :meth:`state_dict`; frozen copies are as their policies.

        Raises:
            FileNotFoundError: an adapter is not there.
            ValueError: a file is no safetensors file.
        """
        state: dict[str, Tensor] = {}
        for name in self.names:
            path = Path(folder) / self._policy_of(name) / "adapter_model.safetensors"
            if not path.is_file():
                raise FileNotFoundError(f"no {path}: the folder is not a whole export")
            try:
                tensors = load_file(path, device=str(device))
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged: {error}") from None
            state |= {f"{name}.{_own_key(key)}": tensor for key, tensor in tensors.items()}
        return state

    @torch.no_grad()
    def merged_weights(self, name: AdapterName) -> Iterator[tuple[str, Tensor]]:
        """Yield (path, weight) of each layer of the base that is quantised or has an adapter, with ``name`` added.

        Weights (out, in) are dequantised, float32, on their own device.

        Raises:
            ValueError: an adapter is of something else, as of the experts of a mixture.
        """
        adapted = {id(layer) for layer in self._layers}
        modules: Iterator[tuple[str, Any]] = self.model.get_base_model().named_modules()
        for path, layer in modules:
            inner = layer.get_base_layer() if id(layer) in adapted else layer
            state = getattr(getattr(inner, "weight", None), "quant_state", None)
            if path.endswith(".base_layer") or (inner is layer and state is None):
                continue
            if not isinstance(getattr(inner, "weight", None), Tensor):  # an expert's parameter of another name
                raise ValueError(f"{path} has no weight of its own to merge an adapter into: leave out --merged")
            weight = inner.weight.data.float() if state is None else dequantized(inner).float()
            yield path, weight if inner is layer else weight + layer.get_delta_weight(name).float()

    def _policy_of(self, name: AdapterName) -> AdapterName:
        return AdapterName(name.removesuffix("_ref").removesuffix("_reward"))


def adapted_modules(folder: str | Path) -> set[str]:
    """Names of the modules of the base that the adapters of an export belong to.

    Raises:
        ValueError: a file is no safetensors file.
    """
    found: set[str] = set()
    for path in filter(Path.is_file, Path(folder).glob("*/adapter_model.safetensors")):  # a pipe would be waited for
        try:
            with safe_open(path, "pt") as file:
                found |= {_own_key(key).rpartition(".")[0] for key in file.keys()}  # noqa: SIM118 - it is no mapping
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    return found


def _own_key(key: str) -> str:
    """Turn a key of a PEFT file into that of :meth:`Adapters.state_dict`, without the adapter's name."""
    return key.removeprefix(_PEFT_PREFIX).removesuffix(".weight")


def _parameters(layers: dict[str, Any], name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of one adapter in PEFT's ``layers``, which are named by their path in the model."""
    for path, layer in layers.items():
        for part in layer.adapter_layer_names:
            holder = getattr(layer, part, {})
            if name in holder:
                entry = holder[name]
                parameter = entry if isinstance(entry, nn.Parameter) else getattr(entry, "weight", None)
                if parameter is not None:
                    yield f"{path.removeprefix(_PEFT_PREFIX)}.{part}", parameter


def _beside(model: PreTrainedModel, place: str) -> str | None:
    """Pattern of the modules beside the trunk; None where nothing there is linear but the output layer."""
    beside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and place and not name.startswith(f"{place}.")
    ]
    head = model.get_output_embeddings()
    return rf"(?!{re.escape(place)}\.).*" if any(model.get_submodule(name) is not head for name in beside) else None
