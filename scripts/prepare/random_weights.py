"""Write random numbers in the place of the published weights, in their formats, to try the full-size recipes."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.random_weights import main

        sys.exit(main(__doc__))
