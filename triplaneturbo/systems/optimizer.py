"""The optimiser, its parameter groups and their scheduled learning rates; gradients over all processes."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triplaneturbo.bounds import Range, Share, Weight
from triplaneturbo.errors import ConfigError, UnknownNameError, nearest
from triplaneturbo.interruption import Wishes
from triplaneturbo.schedule import Progress, Schedule
from triplaneturbo.systems.adan import Adan

OPTIMIZERS = {"Adan": Adan, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


@dataclass(kw_only=True)
class GroupConfig:
    """Arguments of the update rule; None: its own default."""

    lr: Annotated[Schedule, Range(0, 10)] | None = None
    """Learning rate; without one .001."""
    betas: list[Annotated[float, Range(0, 1, below=True)]] | None = None
    """Decay of the running means."""
    eps: Share | None = None
    """Added to the denominator."""
    weight_decay: Annotated[float, Range(0, 10)] | None = None
    """Pull towards zero."""
    max_grad_norm: Weight | None = None
    """Largest norm of the gradient, 0: any. For Adan."""
    no_prox: bool | None = None
    """Decay before the update in place of after it. For Adan."""
    amsgrad: bool | None = None
    """Divide by the largest second moment so far, see torch. For Adam and AdamW."""
    foreach: bool | None = None
    """Update many tensors in one call, see torch. For Adam and AdamW."""
    fused: bool | None = None
    """Update in one kernel, see torch. For Adam and AdamW."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(kw_only=True)
class OptimizerConfig:
    """Which optimiser updates what."""

    name: Literal["Adan", "Adam", "AdamW"] = "Adan"
    """Update rule."""
    args: GroupConfig = field(default_factory=GroupConfig)
    """Arguments of the update rule."""
    params: dict[str, GroupConfig] = field(default_factory=dict)
    """Arguments by part of the system, such as {geometry: {lr: 2e-4}}. A parameter belongs to the longest name that
    it begins with; what belongs to none is not trained. Empty: everything is trained with args."""

    def __post_init__(self) -> None:
        taken = inspect.signature(OPTIMIZERS[self.name]).parameters
        for group in (self.args, *self.params.values()):
            for key in group.given:
                if key not in taken:
                    raise UnknownNameError(f"optimizer {self.name} takes no {key!r}; {nearest(key, taken)}")
            n_betas = 3 if self.name == "Adan" else 2
            if group.betas is not None and len(group.betas) != n_betas:
                raise ConfigError(f"optimizer {self.name} has {n_betas} betas, not {group.betas}")


class ScheduledOptimizer:
    """An optimiser together with the learning rate schedule of each of its groups.

    Raises:
        UnknownNameError: optimizer.params names a part that does not exist.
        ConfigError: there is nothing to train.
    """

    def __init__(self, config: OptimizerConfig, module: nn.Module) -> None:
        names = config.params or {"": GroupConfig()}
        groups = group_parameters(module, list(names))
        options = [{**config.args.given, **names[name].given, "params": params} for name, params in groups.items()]
        self.schedules = [group.get("lr", Schedule.parse(1e-3)) for group in options]
        for group, schedule in zip(options, self.schedules, strict=True):
            group["lr"] = schedule(Progress())
        # torch takes group options that mean nothing to it; the constructor does not.
        shared = {key: value for group in options for key, value in group.items() if key != "params"}
        self.optimizer = OPTIMIZERS[config.name](options, **shared)
        self.parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_learning_rates(self, progress: Progress) -> float:
        """Bring all groups to `progress`; returns the learning rate of the first."""
        for group, schedule in zip(self.optimizer.param_groups, self.schedules, strict=True):
            group["lr"] = schedule(progress)
        return self.optimizer.param_groups[0]["lr"]


def group_parameters(module: nn.Module, names: list[str]) -> Mapping[str, list[nn.Parameter]]:
    """The trainable parameters of `module` by the longest of `names` that their own names begin with."""
    known = {name for name, _ in module.named_modules()} | {name for name, _ in module.named_parameters()}
    for name in names:
        if name not in known:
            raise UnknownNameError(f"optimizer.params: the system has no part {name!r}; {nearest(name, known)}")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for parameter_name, parameter in module.named_parameters():
        owners = [n for n in names if not n or parameter_name == n or parameter_name.startswith(n + ".")]
        if owners and parameter.requires_grad:
            groups[max(owners, key=len)].append(parameter)
    filled = {name: parameters for name, parameters in groups.items() if parameters}
    if not filled:
        raise ConfigError(f"there is nothing to train in {', '.join(map(repr, names))}")
    return filled


@torch.no_grad()
def average_gradients(parameters: list[Tensor], wishes: Wishes) -> tuple[Tensor, Wishes]:
    """Average the gradients over all processes, in place, in one transfer.

    wishes: those of this process; they travel with the gradients.

    Returns:
        The norm of the average, and what any process wishes.

    A parameter that no loss has reached gets a zero gradient, so that all processes hold the same tensors.
    """
    grads = [_gradient(parameter) for parameter in parameters]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        flat = torch.cat([*(grad.flatten() for grad in grads), *(grads[0].new_full((1,), wish) for wish in wishes)])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        *parts, told = flat.split([*(grad.numel() for grad in grads), len(wishes)])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])
        wishes = Wishes(*(told > 0).tolist())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))), wishes


@torch.no_grad()
def limit_norm(parameters: list[Tensor], norm: Tensor, limit: float) -> None:
    """Shorten gradients whose norm is `norm` to the norm `limit`, in place, without waiting for the device."""
    torch._foreach_mul_([_gradient(parameter) for parameter in parameters], (limit / norm.clamp(min=limit)))


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter; one that no loss has reached gets a gradient of zeros."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
