"""Hand one training run to Slurm: render its job script, snapshot code and config, submit.

python launch/submit.py CONFIG [section.field=value ...] --cluster NAME --out RUN [--dry-run]
"""

from pathlib import Path
from typing import Annotated

import typer

from megatron_mathcpt.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    cluster: Annotated[
        str, typer.Option(help="name under configs/clusters, or a path ending in .yaml")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="run folder, seen by all nodes")] = ...,  # type: ignore[assignment]
    site: Annotated[
        list[str] | None, typer.Option("--set", help="override the cluster file: nodes=4")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print the script; write and submit nothing")] = False,
    allow_dirty: Annotated[bool, typer.Option(help="snapshot uncommitted changes too")] = False,
) -> None:
    """Render, snapshot, submit."""
    from megatron_mathcpt.config import load_config
    from megatron_mathcpt.config.experiment import ExperimentConfig
    from megatron_mathcpt.experiment.sbatch import render
    from megatron_mathcpt.experiment.submit import load_cluster, run_job, submit_run
    from megatron_mathcpt.train.inputs import resolve_inputs

    experiment = load_config(config, ExperimentConfig, overrides or ())
    place = load_cluster(cluster, site or ())
    job = run_job(experiment, place, out.resolve())
    if dry_run:
        typer.echo(render(job, place), nl=False)
        return
    resolve_inputs(experiment)  # a missing corpus or checkpoint is told here, not after the queue
    job_id = submit_run(experiment, job, place, allow_dirty=allow_dirty)
    typer.echo(f"job {job_id}: {job.folder}")


if __name__ == "__main__":
    run_command(app)
