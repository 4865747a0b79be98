"""What a teacher is: something that looks at rendered pictures and says in which direction they should move."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triplaneturbo.base import Chosen, Module, Part, option
from triplaneturbo.bounds import ScheduledWeight
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.draws import Drawn
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, TextStates, Views


class Sight(NamedTuple):
    """What a teacher sees of each prompt: `rows` of the views of renderer `owner`, which collect gradients.

    block: its number among the renderers' turns, which its random numbers and its log belong to.
    """

    block: int
    owner: int
    views: Views
    rows: Int[Tensor, " N"]


@dataclass(frozen=True)
class Question:
    """What one teacher is asked at once: about the pictures of one renderer, or of all.

    Pictures are sight-major, then prompt, then view; there are as many of each prompt as the teacher sees at once.
    conditions: what the encoders of the data module say about the prompts, by their names. prompts: their texts.
    """

    sights: tuple[Sight, ...]
    cameras: Cameras
    conditions: Mapping[str, TextStates]
    progress: Progress
    prompts: Sequence[str] = ()

    @property
    def n_prompts(self) -> int:
        return len(self.cameras) // self.cameras.n_view

    @property
    def frames(self) -> int:
        """Pictures of a prompt in a sight."""
        return len(self.sights[0].rows) // self.n_prompts

    @property
    def rows(self) -> Int[Tensor, " N"]:
        """The view of each picture."""
        return torch.cat([sight.rows for sight in self.sights])

    def pictures(self, kind: Literal["rgb", "normal", "disparity"]) -> Float[Tensor, "N C H W"]:
        """What is seen, differentiable; channels first.

        Raises:
            ConfigError: renderers that are asked about at once make pictures of different sizes.
        """
        seen = [getattr(sight.views, kind)[sight.rows] for sight in self.sights]
        if len({x.shape[1:3] for x in seen}) > 1:
            sizes = " and ".join(f"{x.shape[2]} x {x.shape[1]}" for x in seen)
            raise ConfigError(
                "guidance.parallel=true: teachers look at all renderers' pictures at once, which are "
                f"{sizes} pixels here; give data.width and height the values of ray_width and "
                "ray_height, or leave parallel out"
            )
        return torch.cat(seen).movedim(-1, 1)

    def cameras_of_pictures(self) -> Cameras:
        """The camera of each picture."""
        return self.cameras.select(self.rows, n_view=self.frames)

    def prompts_of_pictures(self) -> Int[Tensor, " N"]:
        """The prompt of each picture."""
        return self.rows // self.cameras.n_view


class Teacher(Module):
    """Looks at pictures of one view of each prompt, or of all. A subclass says what it thinks of them: `judge`.

    Its weights are frozen and no part of the system's state, except those of `trained`.
    """

    role = "teacher"

    @dataclass(kw_only=True)
    class Config(Module.Config):
        weight: ScheduledWeight = option(1.0)
        """Of its gradient in the sum; a teacher whose weight is always 0 is not loaded."""
        condition: str | None = None
        """The data module's text encoder whose states it is told; None: that of the generator."""
        shaping: dict[str, Annotated[Chosen, Part("shaping")]] = option({})
        """What is done to its pictures' gradients before they are added to the others', in this order."""
        first_renderer_only: bool = False
        """It looks at the first renderer's pictures only, as often as it would look at all of them."""
        label: str | None = None
        """What logs and random draws call it; None: its name."""

    multi_view: ClassVar[bool] = False
    """Whether the views of a prompt know of each other, so that it needs all of them at once."""
    trained: nn.Module
    """What is trained beside it, in the system's optimiser and checkpoints as `teachers.NAME`; most have none. There is
    no value here: it would hide the module that `configure` of a subclass sets."""

    @property
    def sees_all(self) -> bool:
        """Whether it looks at all views of a prompt, or at one."""
        return self.multi_view

    def check(self, n_view: int, conditions: Collection[str]) -> None:
        """Make sure that the teacher goes with the data.

        n_view: views of a prompt. conditions: names of the encoders there are.

        Raises:
            ConfigError: it wants another number of views, or an encoder that is not there.
        """
        if self.cfg.condition not in (None, *conditions):
            raise ConfigError(
                f"the condition of a teacher is {self.cfg.condition!r}; data.conditions has {', '.join(conditions)}"
            )

    def draw(self, draws: Draws, n_view: int, progress: Progress, timestep_range: tuple[float, float] | None) -> Drawn:
        """All its random numbers for the pictures of one renderer, keyed by sample; None if it needs none.

        timestep_range: the share of all timesteps it is to look at, in place of its own options.
        """
        return None

    @contextmanager
    def at_hand(self, device: torch.device) -> Iterator[None]:
        """A block in which it judges pictures on `device`, and these go back to what they were made from."""
        yield

    @abstractmethod
    def judge(self, question: Question, drawn: list[Drawn]) -> tuple[Float[Tensor, ""], list[dict[str, Tensor]]]:
        """A scalar whose gradient with respect to the pictures is this teacher's, and what to log of each sight.

        It is the mean over the question's prompts of a loss, once for each sight. drawn: what `draw` gave for each.
        """

    def training_loss(self, question: Question, drawn: list[Drawn]) -> Float[Tensor, ""] | None:
        """The loss of what is trained beside the teacher, after `judge` was asked the same; None: nothing is."""
        return None

    def states(self, question: Question) -> TextStates:
        """What the encoder it names says about the prompts."""
        name = self.cfg.condition
        return question.conditions[next(iter(question.conditions)) if name is None else name]

    def train(self, mode: bool = True) -> "Teacher":
        """Teachers stay in evaluation mode, whatever the system around them does; what is trained follows it."""
        super().train(False)
        if hasattr(self, "trained"):
            self.trained.train(mode)
        return self
