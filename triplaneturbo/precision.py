"""The one place that decides in which floating-point type the large networks run.

Fields, renderers and losses are float32 always; only the diffusion networks are large enough for a shorter type to
matter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from triplaneturbo.errors import ConfigError
from triplaneturbo.performance import current

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OF_PRECISION = {32: torch.float32, "bf16": torch.bfloat16, 16: torch.float16}


def resolve_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The type a network runs in on `device`; "auto" is that of the process's `precision`, and if that is "auto", too,
    bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ConfigError: `name` is none of "auto", "float32", "bfloat16", "float16".
    """
    precision = current().precision
    if name == "auto" and precision != "auto":
        return _OF_PRECISION[precision]
    if name == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"network_dtype is {name!r}; allowed: 'auto', " + ", ".join(map(repr, _DTYPES)))
    return _DTYPES[name]


def cast_frozen(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Store the parameters of `module` that are not trained as `dtype`; trained ones stay as they are.

    Networks then compute in this type throughout, but for statistics of norms, which are float32; autocast would store
    them in float32 and cast in every pass.
    """
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def short_factors() -> Iterator[None]:
    """A block in which products of float32 tensors take factors of 10 bits on CUDA (TF32), and sums of 23."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
