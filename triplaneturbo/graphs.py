"""Replay of fixed computations without launching their thousands of kernels one by one.

A diffusion network launches more kernels than the host can issue while the device runs them. What is recorded here are
networks whose shapes stay the same from call to call; another shape is recorded anew, in place of the last.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

_WARM_UP = 2


class GraphReplay:
    """The latest computation on CUDA tensors, recorded as a CUDA graph and replayed while nothing changes.

    Only one recording is kept; its buffers stay allocated. All instances share the memory of what is computed in
    between: they must not run at the same time.
    """

    def __init__(self) -> None:
        self._key: Hashable = None

    def __call__(self, function: Callable[..., Tensor], arguments: tuple[Tensor, ...], key: Hashable) -> Tensor:
        """function(*arguments), in memory of its own.

        function: without gradient and without host synchronisation; called only to record it.
        key: must change whenever anything but the values of the arguments does.
        """
        key = key, _signature(arguments)
        if key != self._key:
            self._record(function, arguments)
            self._key = key
        for buffer, argument in zip(self._inputs, arguments, strict=True):
            buffer.copy_(argument)
        self._graph.replay()
        return self._output.clone()

    def _record(self, function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
        self._key = None
        self._inputs = tuple(a.clone() for a in arguments)
        _warm_up(lambda: function(*self._inputs), arguments[0].device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=_between.handle):
            self._output = function(*self._inputs)


class TrainingReplay:
    """The latest differentiable computation, recorded as two CUDA graphs: forward, and backward.

    The backward pass gives the gradients of those arguments that want one, and adds to the gradients of parameters in
    memory that stays: several passes accumulate without a kernel for each parameter. What the forward pass keeps for
    it stays allocated, too. Recordings with the same `pool` share that memory: each must go backward before another of
    them goes forward.
    """

    def __init__(self, pool: "Pool | None" = None) -> None:
        self._pool = pool or Pool()
        self._key: Hashable = None
        self.passes = 0

    def __call__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        arguments: tuple[Tensor, ...],
        parameters: Sequence[nn.Parameter],
        key: Hashable,
    ) -> tuple[Tensor, ...]:
        """function(*arguments), in memory of its own, differentiable in `parameters` and in the arguments that require
        it.

        The last result is the one that gradients come back to; the others are given without gradient.
        function and key: as for `GraphReplay`, but also called in place of the first replay. One backward pass may
        follow each call, before the next call. While it is recorded no other graph through `parameters` may be alive:
        autograd would wait for the stream of that one, which CUDA forbids.

        Raises:
            RuntimeError: in the backward pass, if another call has been made since.
        """
        wanted = tuple(a.requires_grad for a in arguments)
        key = key, _signature(arguments), wanted, tuple(p.data_ptr() for p in parameters)
        if key != self._key:
            self._record(function, arguments, parameters)
            self._key = key
            # Other computations are recorded between this pass and its way back: it does not take part in replays.
            *others, last = function(*arguments)
            return *(other.detach() for other in others), last
        anchor = parameters[0] if parameters else arguments[0]
        *others, last = _Replay.apply(self, anchor, *arguments)
        return *(other.detach() for other in others), last

    def _record(
        self, function: Callable[..., tuple[Tensor, ...]], arguments: tuple[Tensor, ...], parameters: Sequence[Tensor]
    ) -> None:
        self._key = None
        for name in ("_forward", "_backward", "_outputs", "_input_gradients"):  # give their memory back first
            self.__dict__.pop(name, None)
        self.parameters = tuple(parameters)
        self.gradients = tuple(torch.zeros_like(p) for p in parameters)
        self._inputs = tuple(a.detach().clone().requires_grad_(a.requires_grad) for a in arguments)
        sources = [*self.parameters, *(x for x in self._inputs if x.requires_grad)]

        def forward_and_backward() -> None:
            *_, last = function(*self._inputs)
            torch.autograd.grad(last, sources, torch.zeros_like(last), allow_unused=True)

        _warm_up(forward_and_backward, arguments[0].device)
        torch.cuda.empty_cache()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=self._pool.handle):
            outputs = function(*self._inputs)
        self._grad = torch.zeros_like(outputs[-1])
        with torch.cuda.graph(self._backward, pool=self._pool.handle):
            found = torch.autograd.grad(outputs[-1], sources, self._grad, allow_unused=True)
            self._input_gradients = found[len(self.parameters) :]
            pairs = [(total, g) for total, g in zip(self.gradients, found, strict=False) if g is not None]
            if pairs:
                torch._foreach_add_([total for total, _ in pairs], [g for _, g in pairs])
        self._outputs = tuple(output.detach() for output in outputs)

    def replay_forward(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results, copied; the pass has the number `passes`."""
        with torch.no_grad():
            for buffer, argument in zip(self._inputs, arguments, strict=True):
                buffer.copy_(argument)
        self._forward.replay()
        self.passes += 1
        return tuple(output.clone() for output in self._outputs)

    def replay_backward(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Add to the gradients of the parameters; returns those of the arguments."""
        started = []
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                started.append(gradient)
            elif parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        if started:
            torch._foreach_zero_(started)
        self._grad.copy_(grad)
        self._backward.replay()
        found = iter(self._input_gradients)
        given = (next(found) if x.requires_grad else None for x in self._inputs)
        return tuple(None if g is None else g.clone() for g in given)


class Pool:
    """Memory that recordings share."""

    @functools.cached_property
    def handle(self) -> "torch.cuda._POOL_HANDLE":
        """For `torch.cuda.graph`."""
        handle = torch.cuda.graph_pool_handle()
        # A pool whose recordings are all gone cannot be used again: it keeps one of nothing.
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._keeper, pool=handle):
            self._nothing = torch.zeros(1, device="cuda")
        return handle


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, replay, anchor, *arguments):
        results = replay.replay_forward(arguments)
        ctx.replay, ctx.number = replay, replay.passes
        return results

    @staticmethod
    def backward(ctx, *grads):
        if ctx.number != ctx.replay.passes:
            raise RuntimeError("this pass was recorded over by a later one: go backward before the next call")
        return None, None, *ctx.replay.replay_backward(grads[-1])


def side_by_side(function: Callable[[Tensor], Tensor], arguments: Sequence[Tensor]) -> list[Tensor]:
    """function(argument) of each, on CUDA streams of their own, which the current one then waits for.

    For small computations that do not fill the device; each is the same as by itself. May be recorded.
    """
    current = torch.cuda.current_stream()
    results = []
    streams = [torch.cuda.Stream() for _ in arguments]
    for stream, argument in zip(streams, arguments, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results.append(function(argument))
    for stream in streams:
        current.wait_stream(stream)
    return results


def _signature(arguments: tuple[Tensor, ...]) -> Hashable:
    return tuple((a.shape, a.dtype, a.device) for a in arguments)


# What is computed within recordings without gradient.
_between = Pool()


def _warm_up(function: Callable[[], object], device: torch.device) -> None:
    """Libraries choose algorithms and allocate workspaces on first use, which must not happen while recording."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
