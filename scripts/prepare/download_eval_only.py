"""Fetch what the evaluation needs: the base model, the published student, its prompts."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.prepare import main
        from triplaneturbo.weights.hub import EVALUATION

        sys.exit(main(EVALUATION, __doc__))
