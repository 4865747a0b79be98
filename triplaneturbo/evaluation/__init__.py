"""The repository's folder `evaluation/`, under the name that it has in a wheel, which carries it in this place."""

from triplaneturbo.places import PACKAGE

__path__ = [str(PACKAGE.parent / "evaluation")]
