"""lm-eval's own command line with our model and tasks: `mathcpt-lm-eval run ...`, or this package by `-m`.

It accepts every option of lm-eval. `--model megatron_mathcpt` is the Megatron-Core back end; the tasks of
`tasks/` need no `--include_path`. lm-eval 0.4.13 has no plugins, so both are registered before it starts.
"""

import os
import sys


def main() -> None:
    """Register our model and tasks, then run lm-eval."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):  # lm-eval imports torch before it prints its help: seconds
        print(f"{__doc__}\n`run --help`, `ls --help` and `validate --help` are lm-eval's.")  # noqa: T201
        return
    from megatron_mathcpt.errors import run_command

    run_command(_run)


def _run() -> None:
    from megatron_mathcpt.errors import EvaluationError

    given = {argument.partition("=")[0] for argument in sys.argv}
    if given & {"--num_fewshot", "-f"} and any("mathcpt_" in argument for argument in sys.argv):
        forms = "mathcpt_NAME and mathcpt_NAME_few_shot are the two forms of a set"
        raise EvaluationError(f"--num_fewshot: our tasks would ignore it; leave it out: {forms}")
    import lm_eval.models  # noqa: F401  lm-eval imports its own models only while none is registered
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    from megatron_mathcpt.cpu import use_cpu
    from megatron_mathcpt.device import joined_world
    from megatron_mathcpt.evaluation.tasks import TASKS_FOLDER

    if any("megatron_mathcpt" in argument for argument in sys.argv):
        os.environ.update(joined_world(os.environ) or {})
        use_cpu()  # before the first import of Megatron-Core
    model_registry.register("megatron_mathcpt", target="megatron_mathcpt.evaluation.megatron_lm:MegatronLM")
    # lm-eval takes one --include_path only: a user's own replaces ours.
    if given & {"--tasks", "-t"} and "--include_path" not in given:
        sys.argv += ["--include_path", str(TASKS_FOLDER)]
    cli_evaluate()


if __name__ == "__main__":
    main()
