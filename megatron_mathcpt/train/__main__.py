"""Train one experiment: read, check, start, build, train, close.

    python -m megatron_mathcpt.train CONFIG [section.field=value ...] --out DIR [--processes N]

Started alone it launches N local workers; under torchrun or srun it is a worker. Exit status: 0 target
reached, 2 bad input or a diverged run, 75 stopped by a signal after a save (start it again to resume), else a
crash or a hang (stacks in DIR/.stacks).
"""

import faulthandler
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.checkpoint.convert import keep_base
from megatron_mathcpt.config.base import dump_yaml
from megatron_mathcpt.config.cross_checks import check_experiment
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.phases import phases_of
from megatron_mathcpt.config.resolved_study import load_run
from megatron_mathcpt.errors import EXIT_BAD_INPUT, EXIT_REQUEUE, MathCptError, print_error
from megatron_mathcpt.formats.files import write_atomically
from megatron_mathcpt.formats.manifest import is_complete, write_manifest
from megatron_mathcpt.formats.output_folder import claim_folder, locked_folder
from megatron_mathcpt.formats.run_folder import CONFIG, RUN, WRITTEN, check_run_folder, newest_readable
from megatron_mathcpt.log import get_logger, scaled
from megatron_mathcpt.own_python import collect_rarely
from megatron_mathcpt.planner.memory import peak_memory
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.train import process
from megatron_mathcpt.train.inputs import Inputs, check_resumable, resolve_inputs, verify_inputs

logger = get_logger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[str, typer.Argument(help="YAML file of a run, or STUDY.yaml:RUN")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    out: Annotated[Path, typer.Option(help="run folder; an interrupted run is resumed from it")] = ...,  # type: ignore[assignment]
    processes: Annotated[int | None, typer.Option(min=1, help="local workers; default: the layout's")] = None,
    scale: Annotated[str | None, typer.Option(help="the study at this scale of its file")] = None,
    check: Annotated[bool, typer.Option(help="check config and every byte of the data, then exit")] = False,
) -> None:
    """Train a model with Megatron-Core, from scratch or from given weights."""
    speaks = True
    try:
        joined = process.join_launcher()
        # All processes of a node raise the same error, and a file may be missing on one node only.
        speaks = not joined or os.environ["LOCAL_RANK"] == "0"
        experiment = load_run(config, overrides or [], scale).config
        if not joined:
            sys.exit(_launch(experiment, out, processes, check))
        # Check again: under torchrun or srun there was no launcher.
        inputs, finished = _resolve(experiment, int(os.environ["WORLD_SIZE"]), out)
        if not finished and os.environ["RANK"] == "0" and process._LAUNCHER not in os.environ:
            verify_inputs(inputs.config, full=False)
        speaks = True  # a GPU may be missing for one process; of later errors one process raises its own
        sys.exit(0 if finished or train_experiment(inputs, out) else EXIT_REQUEUE)
    except MathCptError as error:
        if speaks:
            print_error(error)
        sys.exit(EXIT_BAD_INPUT)


def _launch(config: ExperimentConfig, out: Path, processes: int | None, check: bool) -> int:
    """Check all that can be checked without torch, then start the workers; return their exit status."""
    size = config.parallel.model_size if processes is None else processes
    inputs, finished = _resolve(config, size, out)
    verified = verify_inputs(config, full=check) if check or not finished else 0
    resumed = newest_readable(out)
    if resumed is not None and not finished:
        check_resumable(inputs, resumed)
    if check:
        gpu = process.expects_gpu()
        runs = [PlannedRun(phase.config, size, fused=gpu) for phase in phases_of(inputs.config)]
        need = f"{max(peak_memory(run).gib for run in runs):.3g} GiB predicted for each process"
        whole = f"data whole: {scaled(verified, 'B')} compared with their checksums"
        for line in (*inputs.summary(resumed), f"{runs[0].name}: {need}", whole):
            typer.echo(f"{config.name}: {line}")
    if finished:
        logger.info("%s: already trained, in %s", config.name, out)
    if check or finished:
        return 0
    claim_folder(out, RUN, WRITTEN)  # before workers load torch
    status = process.run_workers("megatron_mathcpt.train", sys.argv[1:], size)
    stacks = [str(path) for path in sorted((out / process.STACKS).glob("*")) if path.stat().st_size]
    if status and stacks:
        logger.error("a process hung; stacks: %s", ", ".join(stacks))
    return status


def _resolve(config: ExperimentConfig, world_size: int, out: Path) -> tuple[Inputs, bool]:
    """Resolve the run's inputs, and whether `out` has its result; `ManifestError` if it has another run's."""
    check_run_folder(out)
    check_experiment(config, world_size)
    inputs = resolve_inputs(config)
    check_experiment(inputs.config, world_size)  # again with the fields that data and weights determine
    resolved = inputs.config.model_dump(mode="json")
    return inputs, is_complete(out, RUN, inputs=inputs.fingerprints, config=resolved)


def train_experiment(inputs: Inputs, out: Path) -> bool:
    """Join the process groups, build, train, close; True if the target was reached."""
    from megatron_mathcpt.cpu import use_cpu

    # Both must run before the first import of Megatron-Core.
    use_cpu()
    process.set_deterministic(inputs.config.train.deterministic)
    from megatron_mathcpt import parallel
    from megatron_mathcpt.model.settings import user_buffers
    from megatron_mathcpt.train.components import build, check_machine
    from megatron_mathcpt.train.loop import check_initial_loss, progress, train
    from megatron_mathcpt.train.metrics import Metrics, with_losses

    config, stop = inputs.config, process.StopFlag()
    timeout = config.faults.hang_timeout_seconds
    faulthandler.dump_traceback_later(timeout, exit=True)  # to stderr, until the folder is this job's
    # Collectives time out after the watchdog: one rank's exception would end the others before they dump.
    with ExitStack() as stack, parallel.joined(config.parallel, config.seed, 2 * timeout) as layout:

        def own_folder() -> None:
            if layout.is_writer:
                stack.enter_context(locked_folder(out, RUN, WRITTEN))
                write_atomically(out / CONFIG, dump_yaml(config).encode())
                keep_base(out, inputs.hf, inputs.checkpoint)

        layout.agree(own_folder, out)  # before any other process writes there
        heartbeat = layout.agree(lambda: stack.enter_context(process.watchdog(out, timeout)), out)
        layout.agree(lambda: check_machine(config, layout, out), out)
        with user_buffers(config):
            state = build(inputs, layout, out)
            heartbeat()
            check_initial_loss(state, heartbeat)
            heartbeat()
            metrics = layout.agree(lambda: Metrics(config, layout, out, state.step, state.datasets), out)
            with state.saver:
                finished = train(state, metrics, stop, heartbeat)
        metrics.close()
        # Last: a run folder with a manifest is a finished run, which is never started again.
        if finished and layout.is_writer:
            counts = with_losses(progress(state), out)
            tree = config.model_dump(mode="json")
            counts = counts.model_copy(update={"processes": layout.data_size * layout.sizes.model_size})
            write_manifest(out, RUN, inputs=inputs.fingerprints, counts=counts, config=tree)
            logger.info("%s: trained, in %s", config.name, out)
        return finished


if __name__ == "__main__":
    collect_rarely()
    app()
