"""Fetch all that the full-size recipes need: base models, teachers, the published student, prompt libraries."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.prepare import main
        from triplaneturbo.weights.hub import EVERYTHING

        sys.exit(main(EVERYTHING, __doc__))
