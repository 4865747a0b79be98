"""What a term of the loss is, and how a configuration weighs them."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Chosen, Component, Part, as_tree, convert, option
from triplaneturbo.bounds import ScheduledWeight
from triplaneturbo.errors import ConfigError
from triplaneturbo.schedule import Progress, Schedule
from triplaneturbo.types import Views

Scalar = Float[Tensor, ""]


class LossTerm(Component):
    """A differentiable number read off one renderer's views."""

    role = "loss"

    @dataclass(kw_only=True)
    class Config(Component.Config):
        weight: ScheduledWeight = option(1.0)
        """In the sum; while it is 0 the term is not computed."""

    @abstractmethod
    def __call__(self, views: Views) -> Scalar:
        """The term, unweighted.

        Raises:
            ConfigError: the renderer does not give what it needs.
        """


@dataclass(frozen=True)
class LossConfig:
    """What a renderer's pictures are judged by: `{score: 1.0, eikonal: 25.0, orient: {weight: 0.1, ...}}`.

    score: weight of the teachers' gradient. terms: by name; a number or a schedule is the weight of the term registered
    under the name, a mapping its options, with `type` if it is registered under another name.
    """

    score: Schedule = field(default_factory=lambda: Schedule.parse(1.0))
    terms: dict[str, Chosen] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: object, place: str) -> "LossConfig":
        """Raises ConfigError: a name, a weight or an option is wrong."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, dict):
            raise ConfigError(f"{place} must be a mapping of loss terms to weights, not {given!r}")
        values = {name: value for name, value in given.items() if value is not None}
        score = convert(ScheduledWeight, values.pop("score", 1.0), f"{place}.score")
        terms = {}
        for name, value in values.items():
            options = value if isinstance(value, dict) else {"weight": value}
            terms[name] = Part("loss")({"type": name, **options}, f"{place}.{name}")
        return cls(score, terms)

    def as_tree(self) -> dict[str, Any]:
        """As it is written in YAML."""
        return {"score": as_tree(self.score), **{name: as_tree(term) for name, term in self.terms.items()}}


Losses = Annotated[Any, LossConfig.parse]


class Objective:
    """The loss of one renderer's views, apart from the teachers' gradient."""

    def __init__(self, config: LossConfig) -> None:
        self.score = config.score
        self.terms: Mapping[str, LossTerm] = {name: term.build() for name, term in config.terms.items()}

    def __call__(self, views: Views, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms whose weight is not zero at `progress`, and their values, unweighted."""
        total = views.opacity.new_zeros(())
        values = {}
        for name, term in self.terms.items():
            weight = term.cfg.weight(progress)
            if weight:
                value = term(views)
                total = total + weight * value
                values[name] = value.detach()
        return total, values
