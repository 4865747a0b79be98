"""One worker of many that make the meshes of a library: what it is told, what it makes, what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging as transformers_logging

from triplaneturbo.errors import EmptyFieldError, WeightsError, WriteError
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.exporters.origin import Origin
from triplaneturbo.naming import slug
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline
from triplaneturbo.storage import write_text

# In the folder of a library: what its meshes have in common beside their origins.
RECORD = "library.json"
# How often a prompt may end its worker, or be what it made when its machine was lost.
TRIES = 2


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every worker is told.

    weights: a pipeline folder. weights_id: of its student, see `student_id`. out: the folder of the meshes, which all
    machines see. resolution: grid points along an edge. overwrite: replace meshes of another prompt, seed or training.
    """

    weights: Path
    weights_id: str
    out: Path
    seed: int
    resolution: int
    overwrite: bool = False

    def origin(self, prompt: str) -> Origin:
        """Of the mesh of `prompt`."""
        return Origin(prompt, self.seed, self.weights_id)

    def folder(self, prompt: str) -> Path:
        """Where the mesh of `prompt` goes."""
        return self.out / slug(prompt)

    def is_made(self, prompt: str) -> bool:
        """Whether the mesh of `prompt`, and all that belongs to it, is there."""
        return MeshExporter().is_finished(self.folder(prompt), self.origin(prompt))


@dataclass(frozen=True)
class Answer:
    """What became of a prompt.

    reason: why there is no mesh; empty: there is one. final: the same reason would stop every other prompt, too.
    """

    prompt: str
    reason: str = ""
    final: bool = False


class Maker:
    """Makes meshes with a pipeline that it keeps; in a process, or an actor, of its own.

    Args:
        device: as in `TextToMeshPipeline.from_pretrained`.

    Raises:
        WriteError: this machine does not see the folder of the order.
        WeightsError: this machine has other weights, or damaged ones.
    """

    def __init__(self, order: Order, device: str | None = None) -> None:
        transformers_logging.disable_progress_bar()
        if not (order.out / RECORD).is_file():
            raise WriteError(f"a worker does not see {order.out}: give a folder that is the same on all machines")
        self.order = order
        self.pipeline = TextToMeshPipeline.from_pretrained(order.weights, device)
        if self.pipeline.weights_id != order.weights_id:
            raise WeightsError(
                f"{order.weights} holds other weights for a worker ({self.pipeline.weights_id}) than for the program "
                f"that started it ({order.weights_id}); give a folder that is the same on all machines"
            )

    def __call__(self, prompts: Sequence[str]) -> list[Answer]:
        """Make those that are not there yet and did not end their workers; together, if this is the first try."""
        left = [prompt for prompt in prompts if not self.order.is_made(prompt)]
        answers = [Answer(prompt) for prompt in prompts if prompt not in left]
        again = any(self._tries(prompt) for prompt in left)
        for group in [[prompt] for prompt in left] if again else [left]:
            if any(self._tries(prompt) == TRIES for prompt in group):
                answers += [Answer(prompt, f"its worker ended while making it, {TRIES} times") for prompt in group]
                continue
            for prompt in group:
                write_text(self._mark(prompt, self._tries(prompt) + 1), "")
            answers += self._try(group)
        return answers

    def _tries(self, prompt: str) -> int:
        """How often a worker has begun to make it in this call of the program, whatever became of that worker."""
        return sum(self._mark(prompt, number).exists() for number in range(1, TRIES + 1))

    def _mark(self, prompt: str, number: int) -> Path:
        return self.order.folder(prompt) / f".try-{number}.tmp"

    def _try(self, prompts: list[str]) -> list[Answer]:
        """Make them together; each one alone if one of them has no surface."""
        left = [prompt for prompt in prompts if not self.order.is_made(prompt)]
        try:
            if left:
                self._make(left)
        except EmptyFieldError as error:
            if len(prompts) == 1:
                return [Answer(prompts[0], str(error))]
            return [answer for prompt in prompts for answer in self._try([prompt])]
        except WriteError as error:
            return [Answer(prompt, str(error), final=True) for prompt in prompts]
        return [Answer(prompt) for prompt in prompts]

    def _make(self, prompts: list[str]) -> None:
        made = self.pipeline(prompts, seed=self.order.seed, resolution=self.order.resolution)
        made.export_all(self.order.out, overwrite=self.order.overwrite)
