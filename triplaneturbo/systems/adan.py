"""Adan: adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from triplaneturbo.errors import ConfigError


class Adan(torch.optim.Optimizer):
    """With gradient g, previous gradient g' (g' = g in the first step), d = g - g' and betas (b1, b2, b3):

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) d        n <- b3 n + (1 - b3) (g + b2 d)^2
        p <- p - lr (m / c1 + b2 v / c2) / (sqrt(n / c3) + eps),      ci = 1 - bi^step

    Args:
        weight_decay: by default proximal, p <- p / (1 + lr weight_decay) after the update; with `no_prox`
            p <- p (1 - lr weight_decay) before it.
        max_grad_norm: if positive, gradients are scaled by min(1, max_grad_norm / (norm + eps)) first, with the norm
            over all parameters.

    Four tensors a parameter of state; all parameters of a group are updated together. Every parameter must have a
    gradient in every step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or max_grad_norm < 0:
            raise ConfigError("lr, eps, weight_decay and max_grad_norm of Adan must not be negative")
        if len(betas) != 3 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"Adan needs three betas in [0, 1), not {betas}")
        self.max_grad_norm = max_grad_norm
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "no_prox": no_prox}
        super().__init__(params, {**defaults, "step": 0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> object:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = self._clip_factor()
        for group in self.param_groups:
            params = group["params"]
            grads = [p.grad for p in params]
            if scale is not None:
                grads = list(torch._foreach_mul(grads, scale))
            group["step"] += 1
            self._update(group, params, grads)
        return loss

    def _clip_factor(self) -> Tensor | None:
        if not self.max_grad_norm:
            return None
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        return (self.max_grad_norm / (norm + self.param_groups[0]["eps"])).clamp(max=1.0)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        beta1, beta2, beta3 = group["betas"]
        lr, decay, step = group["lr"], group["lr"] * group["weight_decay"], group["step"]
        for param, grad in zip(params, grads, strict=True):
            if not self.state[param]:
                zeros = {name: torch.zeros_like(param) for name in ("momentum", "difference", "square")}
                self.state[param] = {**zeros, "previous": grad.clone()}
        m, v, n, previous = (
            [self.state[p][name] for p in params] for name in ("momentum", "difference", "square", "previous")
        )
        change = torch._foreach_sub(grads, previous)
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_lerp_(v, change, 1 - beta2)
        ahead = torch._foreach_add(grads, change, alpha=beta2)
        torch._foreach_mul_(n, beta3)
        torch._foreach_addcmul_(n, ahead, ahead, 1 - beta3)
        torch._foreach_copy_(previous, grads)

        scale = torch._foreach_sqrt(n)
        torch._foreach_div_(scale, (1 - beta3**step) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        if decay and group["no_prox"]:
            torch._foreach_mul_(params, 1 - decay)
        torch._foreach_addcdiv_(params, m, scale, -lr / (1 - beta1**step))
        torch._foreach_addcdiv_(params, v, scale, -lr * beta2 / (1 - beta2**step))
        if decay and not group["no_prox"]:
            torch._foreach_div_(params, 1 + decay)
