"""Fetch what the evaluation needs: the base model, the published student, its prompts."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"download_eval_only.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.prepare import main
        from triplaneturbo.weights.hub import EVALUATION

        sys.exit(main(EVALUATION, __doc__))
