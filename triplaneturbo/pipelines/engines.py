"""Who makes the meshes of a library: worker processes on this machine, or the actors of a Ray cluster.

An engine is given batches of prompts and yields answers as they come, in any order. What a lost worker was making is
given to another; the `Maker` sees to it that this has an end. If there are prompts without an answer, then because no
worker could begin.
"""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

import torch

from triplaneturbo.errors import USER_ERRORS, ConfigError
from triplaneturbo.interruption import Stopped, interruption, interrupts_blocked
from triplaneturbo.pipelines.making import Answer, Maker, Order

log = logging.getLogger(__name__)

Batches = Sequence[Sequence[str]]
_END_S = 30.0


def own_devices() -> list[str]:
    """All GPUs that this process may use; the CPU, once, if there are none."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


# Processes


def in_processes(order: Order, batches: Batches, devices: Sequence[str]) -> Iterator[Answer]:
    """A process on each of `devices`; who is ready gets the next batch.

    What a process that died was making is given out again, prompt by prompt. Another process takes its place, unless it
    died before it could begin.

    Raises:
        ConfigError, WeightsError, WriteError: a worker cannot begin.
    """
    todo = deque(batches)
    workers = [_Worker(order, device) for device in devices[: len(todo)]]
    try:
        while workers:
            for connection in wait([worker.connection for worker in workers]):
                worker = next(worker for worker in workers if worker.connection is connection)
                answers = worker.receive()
                if answers is None:
                    workers.remove(worker)
                    log.warning("a worker on %s has ended%s", worker.device, worker.stop())
                    todo.extendleft([prompt] for prompt in worker.batch)
                    if worker.began and todo:
                        workers.append(_Worker(order, worker.device))
                    continue
                yield from answers
                if todo:
                    worker.give(todo.popleft())
                else:
                    workers.remove(worker)
                    worker.stop()
    finally:
        for worker in workers:
            worker.stop(wait_s=0.0)


class _Worker:
    """A process, seen from the one that started it.

    batch: what it is making. began: whether it has ever answered.
    """

    def __init__(self, order: Order, device: str) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a fork
        self.device, self.batch, self.began = device, list[str](), False
        self.connection, its_end = context.Pipe()
        self._process = context.Process(target=_work, args=(its_end, order, device), daemon=True)
        with interrupts_blocked():
            self._process.start()
        its_end.close()  # so that its death ends the connection

    def receive(self) -> list[Answer] | None:
        """What it says, [] when it begins; None: it has died.

        Raises:
            ConfigError, WeightsError, WriteError: it cannot begin.
        """
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(said, Exception):
            raise said
        self.batch, self.began = [], True
        return said

    def give(self, batch: Sequence[str]) -> None:
        """Let it make these."""
        self.batch = list(batch)
        try:
            self.connection.send(self.batch)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died meanwhile, which the next `receive` sees

    def stop(self, wait_s: float = _END_S) -> str:
        """End it, unless it ends by itself in `wait_s` seconds now that nobody asks it for more; says how it ended."""
        self.connection.close()
        for end, seconds in ((None, wait_s), (self._process.terminate, _END_S), (self._process.kill, None)):
            if end and self._process.is_alive():
                end()
            self._process.join(seconds)
        code = self._process.exitcode
        return f" by signal {-code}" if code and code < 0 else f" with exit code {code}"


def _work(connection: Connection, order: Order, device: str) -> None:
    """A worker's whole life: begin, then answer batches until nobody asks any more."""
    interruption.install()
    try:
        try:
            maker = Maker(order, device)
        except USER_ERRORS as error:
            connection.send(error)
            return
        connection.send([])
        while True:
            connection.send(maker(connection.recv()))
    except (Stopped, EOFError, ConnectionError):  # told to end; or who started it has ended, or asks no more
        return


# Ray


def on_ray(order: Order, batches: Batches, address: str | None) -> Iterator[Answer]:
    """An actor on each GPU of a Ray cluster; on each of its machines if it has none.

    What a machine that is lost was making Ray gives to others.

    address: of a running cluster; None: as RAY_ADDRESS says, else the one that runs here, else one that is started here
        for the time of this call.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or it has nothing to give.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--engine ray needs {error.name}, which is not installed; run: pip install 'triplaneturbo[ray]', or leave "
            "--engine out to use this machine alone"
        ) from error
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {address}: {error}; start one with `ray start --head`"
        ) from error
    signal.signal(signal.SIGTERM, on_stop)  # Ray has put its own in place
    try:
        yield from _rows(order, batches)
    finally:
        ray.shutdown()


def _rows(order: Order, batches: Batches) -> Iterator[Answer]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # What fails in one block is no reason to give up the others: a prompt without an answer is named at the end.
    context.max_errored_blocks = -1
    context.actor_task_retry_on_errors = True
    prompts = [{"prompt": prompt} for batch in batches for prompt in batch]
    blocks = ray.data.from_items(prompts, override_num_blocks=len(batches))
    number, resources = _actors()
    answers = blocks.map_batches(
        _RayMaker,
        batch_size=None,  # a block
        fn_constructor_args=(order,),
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=number, max_size=number, max_tasks_in_flight_per_actor=1
        ),
        **resources,
    )
    for row in answers.iter_rows():
        yield Answer(row["prompt"], row["reason"], row["final"])


def _actors() -> tuple[int, dict[str, float]]:
    """How many, and what each of them needs: a GPU; where there are none, all CPUs of a machine."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if gpus:
        return gpus, {"num_gpus": 1}
    cpus = [machine["CPU"] for machine in machines if machine.get("CPU", 0) >= 1]
    if not cpus:
        raise ConfigError("the Ray cluster has neither GPUs nor CPUs to give; see `ray status`")
    return len(cpus), {"num_cpus": min(cpus)}


class _RayMaker:
    """A `Maker` for batches as Ray Data has them, columns. Why it cannot begin is an answer."""

    def __init__(self, order: Order) -> None:
        self._why_not = ""
        try:
            self._make = Maker(order)
        except USER_ERRORS as error:
            self._why_not = str(error)

    def __call__(self, batch: dict) -> dict:
        """A column for each field of the answers."""
        prompts = [str(prompt) for prompt in batch["prompt"]]
        refusal = [Answer(prompt, self._why_not, final=True) for prompt in prompts]
        answers = refusal if self._why_not else self._make(prompts)
        return {name: [getattr(answer, name) for answer in answers] for name in ("prompt", "reason", "final")}
