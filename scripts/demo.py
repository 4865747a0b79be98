"""What ./setup.sh demo runs: meshes from the shipped student, then a training of one prompt."""

import sys

try:
    from triplaneturbo.host import let_idle_threads_sleep
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"demo.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    let_idle_threads_sleep()
    with stoppable():
        from triplaneturbo.evaluation.demo import main

        main()
