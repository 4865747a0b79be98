"""Training: the method, its losses and optimiser, and what keeps a run safe."""

from triplaneturbo.systems import prd as prd
