"""Fetch all that the full-size recipes need: base models, teachers, the published student, prompt libraries."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"download_full.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.prepare import main
        from triplaneturbo.weights.hub import EVERYTHING

        sys.exit(main(EVERYTHING, __doc__))
