"""Fetch the teachers of ScaleDreamer, Stable Diffusion 2.1 base and MVDream, and its prompt libraries."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"download_pretrained_models.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.prepare import main
        from triplaneturbo.weights.hub import LIBRARIES, MVDREAM, STABLE_DIFFUSION_2

        # The first two are of another method.
        sys.exit(main((STABLE_DIFFUSION_2, MVDREAM, *LIBRARIES[2:]), __doc__))
