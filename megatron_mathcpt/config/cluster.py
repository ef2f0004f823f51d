"""One Slurm site: the resources of a job and how its programs start; experiments never name a site.

Every string here ends up in an `#SBATCH` line or a shell word, so control characters are refused.
"""

from typing import Annotated

from pydantic import Field, StringConstraints

from megatron_mathcpt.config.base import Section

Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f\u0085\u2028\u2029]+$")]
# What Slurm accepts as the name of a partition, account or quality of service; never an option or a path.
SlurmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+@-]*$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f\u0085\u2028\u2029]*$")]
Mount = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f,:]*:/[^\x00-\x1f\x7f,:]*(:r[ow])?$")]


class Container(Section):
    """Image for pyxis/enroot (`--container-image`) and host folders mounted in it (`SRC:DST[:ro]`)."""

    image: Line
    mounts: tuple[Mount, ...] = ()


class SingleTask(Section):
    """Resources of a stage that runs as one task: corpus build, conversion, evaluation, report."""

    partition: SlurmName
    cpus_per_task: int = Field(gt=0)
    memory_gib: int = Field(gt=0)
    evaluation_gpus: int = Field(ge=0)  # or what its model needs, in the jobs' partition; 0: on CPUs


class ModelServer(Section):
    """One OpenAI-compatible server on `gpus` of its node, numbered from 0.

    In the words of `command`, `{port}` is replaced by the port to listen on, `{name}` by the model's name in
    the synthesis config, which the server must report, and `{model}` by `model` (default: that name).
    """

    gpus: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    command: tuple[Line, ...] = Field(min_length=1)
    model: Line | None = None

    def check_together(self) -> None:
        if not any("{port}" in word for word in self.command):
            raise ValueError("command: has no {port}, the port to listen on")


class SynthesisServers(Section):
    """How a synthesis job, which takes a whole node, starts the servers of its config, by their names."""

    servers: dict[str, ModelServer] = Field(min_length=1)
    start_timeout_seconds: float = Field(default=1800, gt=0)  # loading a large model takes minutes

    def check_together(self) -> None:
        taken = [gpu for server in self.servers.values() for gpu in server.gpus]
        if twice := [gpu for gpu in taken if taken.count(gpu) > 1]:
            raise ValueError(f"servers: GPU {twice[0]} is given twice")


class ClusterConfig(Section):
    """One site; a training job takes `nodes` whole nodes with one task per GPU.

    `cpus_per_task` counts physical cores: with all cores of a node allocated, tasks in rank order fill one
    socket after the other, as do the GPUs with the same indices. `python` is the interpreter on the node (or
    in the container); `setup_script` is sourced first, `environment` is set after it and overrides it.
    A job gets a signal `warning_seconds` before `time_limit_minutes`, saves and requeues itself; it fails
    after `requeues_without_progress` requeues without a new checkpoint. With `check_gpus`, nvidia-smi counts
    every node's GPUs and torch tries each before training starts, and jobs that request GPUs refuse to run
    without one (MATHCPT_DEVICE, device.py).
    """

    name: SlurmName
    partition: SlurmName
    account: SlurmName | None = None
    qos: SlurmName | None = None
    nodes: int = Field(gt=0)
    gpus_per_node: int = Field(gt=0)
    cpus_per_task: int = Field(gt=0)
    time_limit_minutes: int = Field(gt=0)
    warning_seconds: int = Field(gt=0)
    requeues_without_progress: int = Field(default=3, ge=0)
    check_gpus: bool = True
    python: Line
    setup_script: AbsolutePath | None = None
    environment: dict[VariableName, Line] = Field(default_factory=dict)
    container: Container | None = None
    single_task: SingleTask
    synthesis: SynthesisServers | None = None

    def check_together(self) -> None:
        if self.warning_seconds >= 60 * self.time_limit_minutes:
            raise ValueError("warning_seconds must be less than time_limit_minutes")

    @property
    def world_size(self) -> int:
        """Tasks, and GPUs, of a training job."""
        return self.nodes * self.gpus_per_node
