"""One Slurm site: the resources of a job and how its programs start; experiments never name a site.

Every string here ends up in an `#SBATCH` line or a shell word, so control characters are refused.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from megatron_mathcpt.config.base import Section

Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f\u0085\u2028\u2029]+$")]
# What Slurm accepts as the name of a partition, account or quality of service; never an option or a path.
SlurmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+@-]*$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Z_][A-Z0-9_]*$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f\u0085\u2028\u2029]*$")]
Mount = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f,:]*:/[^\x00-\x1f\x7f,:]*(:r[ow])?$")]


class Container(Section):
    """`image` for pyxis/enroot (`--container-image`) and host folders in it, `mounts` (`SRC:DST[:ro]`)."""

    image: Line
    mounts: tuple[Mount, ...] = ()


class SingleTask(Section):
    """Resources of a stage that runs as one task: corpus build, conversion, evaluation, report.

    It runs in `partition` with `cpus_per_task` cores and `memory_gib` GiB. An evaluation runs on
    `evaluation_gpus`, or more if its model needs them, in the jobs' partition; 0: on CPUs.
    """

    partition: SlurmName
    cpus_per_task: int = Field(gt=0)
    memory_gib: int = Field(gt=0)
    evaluation_gpus: int = Field(ge=0)


# Options as in vLLM's docs (serving/parallelism_scaling; several nodes without Ray since pull request 23691),
# SGLang's (server_arguments, its multi-node part) and llama.cpp's tools/server/README.md, in 2026.
_COMMANDS = {
    "vllm": "vllm serve {model} --served-model-name {name} --tensor-parallel-size {gpus}",
    "sglang": "python3 -m sglang.launch_server --model-path {model} --served-model-name {name}"
    " --tp-size {all_gpus}",
    "llama.cpp": "llama-server --model {model} --alias {name} --n-gpu-layers 999",
}
_SPANS = {
    "vllm": " --pipeline-parallel-size {nodes} --distributed-executor-backend mp"
    " --nnodes {nodes} --node-rank {rank} --master-addr {head} --master-port {head_port}",
    "sglang": " --nnodes {nodes} --node-rank {rank} --dist-init-addr {head}:{head_port}",
}
Index = Annotated[int, Field(ge=0, lt=10_000)]


class ModelServer(Section):
    """One model on `gpus` of each of `nodes`, both numbered from 0; the run is on node 0 of its job.

    A node's GPUs are divided among `replicas`, each a server of its own, and the client shares its requests
    out to all. With `span`, one server is over all the nodes, for a model that is too large for one. The
    program, on PATH by the setup script, is that of an `engine`, whose further `arguments` override ours
    (llama.cpp loads a GGUF file), or any `command`. In their words `{model}` becomes `model` (default: the
    name), `{name}` the model's name in the synthesis config, which the server must report, `{host}` and
    `{port}` where to listen, `{gpus}` the number of GPUs on a node, `{all_gpus}` on all; with `span`,
    `{rank}` the node's place among `{nodes}`, which meet at `{head}:{head_port}`.
    """

    gpus: tuple[Index, ...] = Field(min_length=1)
    nodes: tuple[Index, ...] = Field(default=(0,), min_length=1)
    replicas: int = Field(default=1, gt=0)
    span: bool = False
    engine: Literal["vllm", "sglang", "llama.cpp"] | None = None
    arguments: tuple[Line, ...] = ()
    command: tuple[Line, ...] = ()
    model: Line | None = None

    def check_together(self) -> None:
        marks = {"{port}": True, "{host}": any(self.nodes), "{rank}": self.span} if self.command else {}
        text, gpus, one = " ".join(self.command), len(self.gpus), len(self.nodes) == 1
        wrong = {
            "engine: give one, or a command, not both": (self.engine is None) == (not self.command),
            "arguments: belong to an engine; write them into command": self.command and self.arguments,
            **{f"command: has no {mark}": mark not in text for mark, needed in marks.items() if needed},
            "nodes: one is given twice": len({*self.nodes}) < len(self.nodes),
            f"replicas: {gpus} GPUs cannot be divided among {self.replicas}": gpus % self.replicas,
            "span: is for several nodes, without replicas": self.span and (one or self.replicas > 1),
            "span: llama.cpp is started on one node only": self.span and self.engine == "llama.cpp",
        }
        if found := [problem for problem, is_so in wrong.items() if is_so]:
            raise ValueError(found[0])

    def words(self, rank: int) -> tuple[str, ...]:
        """The command on the node with this place in `nodes`, before anything is replaced."""
        if self.engine is None:
            return self.command
        text = _COMMANDS[self.engine] + " --host {host} --port {port}"
        text += _SPANS[self.engine] if self.span else ""
        helper = ("--headless",) if self.engine == "vllm" and self.span and rank else ()
        return (*text.split(), *helper, *self.arguments)


class SynthesisServers(Section):
    """How a synthesis job, which takes whole nodes, starts the `servers` of its config, by their names.

    They must answer within `start_timeout_seconds` (loading a large model takes minutes); after
    `silence_timeout_seconds` without an answer the run ends, to be started again.
    """

    servers: dict[str, ModelServer] = Field(min_length=1)
    start_timeout_seconds: float = Field(default=1800, gt=0)
    silence_timeout_seconds: float = Field(default=600, gt=0)

    def check_together(self) -> None:
        each = self.servers.values()
        taken = [(node, gpu) for one in each for node in one.nodes for gpu in one.gpus]
        if twice := [place for place in taken if taken.count(place) > 1]:
            raise ValueError("servers: GPU {1} of node {0} is given twice".format(*twice[0]))
        if unused := {*range(self.nodes)} - {node for node, _ in taken}:
            raise ValueError(f"servers: none is on node {min(unused)}; number the nodes without a gap")

    @property
    def nodes(self) -> int:
        """Nodes that a job needs for all servers."""
        return 1 + max(max(server.nodes) for server in self.servers.values())


class ClusterConfig(Section):
    """One site, `name`; a training job takes `nodes` whole nodes with one task for each of `gpus_per_node`.

    `partition`, `account` and `qos` are Slurm's, of jobs on GPUs; `single_task` is for all others.
    `synthesis` starts the servers of a synthesis (None: they run elsewhere). `cpus_per_task` counts physical
    cores: with all cores of a node allocated, tasks in rank order fill one socket after the other, as do the
    GPUs with the same indices. `python` is the interpreter on the node (or in the `container`);
    `setup_script` is sourced first, `environment` is set after it and overrides it. A job gets a signal
    `warning_seconds` before `time_limit_minutes`, saves and requeues itself; it fails after
    `requeues_without_progress` requeues without a new checkpoint. With `check_gpus`, nvidia-smi counts every
    node's GPUs and torch tries each before training starts, and jobs that request GPUs refuse to run without
    one (MATHCPT_DEVICE, device.py).
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
        for name, server in (self.synthesis.servers if self.synthesis else {}).items():
            if max(server.gpus) >= self.gpus_per_node:
                raise ValueError(f"synthesis.servers.{name}.gpus: a node has {self.gpus_per_node}, from 0")
            if self.container and any(server.nodes):  # where the run is, without srun
                raise ValueError(f"synthesis.servers.{name}.nodes: in a container only node 0 can be used")

    @property
    def world_size(self) -> int:
        """Tasks, and GPUs, of a training job."""
        return self.nodes * self.gpus_per_node
