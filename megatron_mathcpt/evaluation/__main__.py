"""lm-eval's own command line with our back end and tasks: `mathcpt-lm-eval run ...`, or this package by `-m`.

Takes every option of lm-eval. `--model megatron_mathcpt` is the Megatron-Core back end; the tasks of
`tasks/` are found without `--include_path`. Release 0.4.13 has no plugin discovery, so they are registered
here, before it reads its arguments.
"""

import sys


def main() -> None:
    """Register the back end and the tasks, then run lm-eval."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):  # lm-eval's own help takes seconds: it imports torch first
        print(f"{__doc__}\n`run --help`, `ls --help` and `validate --help` are lm-eval's.")  # noqa: T201
        return
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    from megatron_mathcpt.cpu import use_cpu
    from megatron_mathcpt.errors import run_command
    from megatron_mathcpt.evaluation.tasks import TASKS_FOLDER

    if any("megatron_mathcpt" in argument for argument in sys.argv):
        use_cpu()  # before the first import of Megatron-Core
    model_registry.register("megatron_mathcpt", target="megatron_mathcpt.evaluation.megatron_lm:MegatronLM")
    takes_tasks = any(argument.startswith("--tasks") for argument in sys.argv)
    if takes_tasks and "--include_path" not in sys.argv:
        sys.argv += ["--include_path", str(TASKS_FOLDER)]
    run_command(cli_evaluate)


if __name__ == "__main__":
    main()
