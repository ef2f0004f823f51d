"""From a job and a cluster to the text of one sbatch script.

Shell words are quoted by `shlex`. An `#SBATCH` line knows no safe quoting (a newline or a `%` in a value
changes the job), so what goes there is limited to harmless characters and anything else is refused.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mathcpt.config.cluster import ClusterConfig
from megatron_mathcpt.errors import ConfigError

TEMPLATE = "job.sbatch.j2"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_PATH = re.compile(r"(/[A-Za-z0-9_.+=@~-]+)+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True)
class Job:
    """One job: `command` (the interpreter first) runs as `nodes` x `tasks_per_node` tasks.

    `folder` takes logs and state, `code` is the snapshot it runs from, `checkpoints` shows its progress,
    and relative paths in its command count from `work`. With `shards` it is an array whose tasks get
    `--shard=INDEX/COUNT` and a folder of their own.
    """

    name: str
    folder: Path
    code: Path
    work: Path
    checkpoints: Path
    command: tuple[str, ...]
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    check_nodes: bool = False
    shards: int | None = None

    @property
    def tasks(self) -> int:
        """Tasks on all nodes together."""
        return self.nodes * self.tasks_per_node


def render(job: Job, cluster: ClusterConfig) -> str:
    """The sbatch script of `job`; raises `ConfigError` for a value that cannot be passed on unchanged."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("megatron_mathcpt.experiment", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: every value goes through `quote`
    )
    environment.filters["quote"] = _quote
    template = environment.get_template(TEMPLATE)
    return template.render(job=job, cluster=cluster, options=_options(job, cluster), quote=_quote)


def _quote(value: Any) -> str:
    """One shell word."""
    text = str(value)
    if _CONTROL.search(text):
        raise ConfigError(
            f"{text!r}: holds a line break or control character; it cannot go into a job script"
        )
    return shlex.quote(text)


def _options(job: Job, cluster: ClusterConfig) -> list[str]:
    """Options of the `#SBATCH` lines, in order."""
    training = job.gpus_per_node == cluster.gpus_per_node and job.tasks_per_node == cluster.gpus_per_node
    minutes = cluster.time_limit_minutes
    options = {
        "job-name": _name(job.name),
        "account": cluster.account,
        "partition": cluster.partition if training else cluster.single_task.partition,
        "qos": cluster.qos,
        "nodes": job.nodes,
        "ntasks": job.tasks,
        "ntasks-per-node": job.tasks_per_node,
        "cpus-per-task": job.cpus_per_task,
        "gpus-per-node": job.gpus_per_node or None,
        "mem": "0" if training else f"{cluster.single_task.memory_gib}G",
        "exclusive": training,
        "hint": "nomultithread" if training else None,
        "time": f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00",
        "signal": f"B:USR1@{cluster.warning_seconds}",
        "requeue": True,
        "array": f"0-{job.shards - 1}" if job.shards else None,
        "chdir": _path("working folder", job.work),
        "output": f"{_path('folder', job.folder)}/{'%A_%a' if job.shards else '%j'}.log",
        "open-mode": "append",
    }
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not None and value is not False
    ]


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: {name!r} cannot be a job's name; use letters, digits and _ . + - only")
    return name


def _path(field: str, path: Path) -> Path:
    if not _PATH.fullmatch(str(path)) or ".." in path.parts:
        raise ConfigError(
            f"{field}: {str(path)!r} cannot stand in an #SBATCH line; "
            "use an absolute path of letters, digits and _ . + = @ ~ - only"
        )
    return path
