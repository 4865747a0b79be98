"""Write random numbers in the place of the published weights, in their formats, to try the full-size recipes."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"random_weights.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.random_weights import main

        sys.exit(main(__doc__))
