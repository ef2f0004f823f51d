"""What a run will read, need and cost, predicted on any machine and before a GPU is allocated.

A run is resolved as training does it where its data and weights are there. Before that its shape is that of
its config, of the Hugging Face folder, or of the run of the study that it starts from, and tokens are those
that the study expects. Of models that are only scored, the memory with which they answer.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_mathcpt.checkpoint.convert import checkpoint_shape
from megatron_mathcpt.config.cross_checks import check_experiment, check_passes
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.packages import check_build, check_evaluation, check_installed
from megatron_mathcpt.config.phases import phases_of, pool_tokens, run_steps
from megatron_mathcpt.config.resolved_study import Resolved, Study
from megatron_mathcpt.errors import ConfigError, MathCptError, first_of
from megatron_mathcpt.experiment.stages import Stage
from megatron_mathcpt.formats.benchmark import choose_sets, examples_for, load_items
from megatron_mathcpt.formats.corpus_folder import tokens_built
from megatron_mathcpt.formats.hub import local_folder
from megatron_mathcpt.formats.manifest import FILE_NAME, load_manifest
from megatron_mathcpt.formats.run_folder import checkpoint_manifest, checkpoint_paths, chosen_checkpoint
from megatron_mathcpt.formats.tokenizer_folder import ids_of
from megatron_mathcpt.log import Cell, clock, figure, scaled
from megatron_mathcpt.planner import memory
from megatron_mathcpt.planner.machine import check_recipe, load_hardware, load_machine
from megatron_mathcpt.planner.planned_run import PlannedRun
from megatron_mathcpt.planner.shapes import known_shapes, load_shape
from megatron_mathcpt.planner.step_time import step_time
from megatron_mathcpt.train.inputs import check_packages, read_folders, resolve_inputs

RUN_HEADINGS = ("run", "steps", "tokens", "of which (passes)", "layout", "GiB", "step", "disk", "GPU-hours")
Run = Resolved[ExperimentConfig]
MODEL_HEADINGS = ("model", "parameters", "GB of weights", "TP", "GiB a GPU", "fits")


@dataclass(frozen=True)
class DryRun:
    """One run: optimizer steps, training tokens, the planner's prediction for its layout, over all phases.

    `pools` maps each pool to the tokens drawn from it, and to how many passes over its training split these
    are, None if its size is not known. `disk_bytes` is what its checkpoints take at most.
    """

    steps: int
    tokens: int
    pools: Mapping[str, tuple[float, float | None]]
    layout: str
    memory_gib: float
    step_seconds: float
    gpu_hours: float
    disk_bytes: int


def plan_runs(
    runs: Iterable[tuple[Run, Study | None]], gpus: int, hardware: str
) -> tuple[dict[str, DryRun], list[str]]:
    """The plan of each run (with its study, if it is of one), and lines on their shapes and costs in all.

    A run whose shape is not known is left out, and a line says so; an error if that leaves none.
    """
    plans, origins, unknown = dict[str, DryRun](), dict[str, list[str]](), dict[str, MathCptError]()
    for run, study in runs:
        name = run.config.name
        try:
            config, tokens, origin = resolve_run(run, study)
        except MathCptError as error:
            unknown[name] = error
            continue
        concurrent = study is not None and study.concurrent_stages
        own = config.parallel.model_size if concurrent else gpus
        plans[name] = plan_run(config, own, hardware, tokens)
        origins.setdefault(origin, []).append(name)
    if unknown and not plans:
        raise next(iter(unknown.values()))
    hours = sum(plan.gpu_hours for plan in plans.values())
    disk, days = sum(plan.disk_bytes for plan in plans.values()), hours / gpus / 24
    return plans, [
        *(f"{first_of(names)}: {origin}" for origin, names in origins.items()),
        *(f"{name}: not planned ({error})" for name, error in unknown.items()),
        f"{_hours(hours)} GPU-hours of training on {hardware}, as the planner predicts: "
        f"{f'{days:,.1f} days' if days >= 1 else clock(86400 * days)} on {gpus}; "
        f"checkpoints of up to {scaled(disk, 'B')}",
    ]


def resolve_run(run: Run, study: Study | None) -> tuple[ExperimentConfig, dict[str, float], str]:
    """The config with its model complete, the known tokens of pools, and how both were found.

    Raises what `resolve_inputs` does for data and weights that do not match, or a shape is not known yet.
    """
    config, tokens = run.config, {**run.tokens, **tokens_built(run.config.data.corpora)}
    start, hf, shape, data = config.init.checkpoint, config.init.hf, config.model, read_folders(config)
    if hf and (shape is None or hf.exists()):
        hf = local_folder(hf, ["config.json"])
    trained = start is None or bool(checkpoint_paths(start)) or (start / FILE_NAME).is_file()
    built = [folder for folder in data if (folder / FILE_NAME).is_file()]
    if trained and built == data and (hf is None or any(hf.glob("*.safetensors"))):
        inputs = resolve_inputs(config)
        packed = {config.data.sft.name: inputs.available["sft"]} if config.data.sft else {}
        return inputs.config, tokens | packed, "as training resolves it"
    origin, stem = "the shape of its config, until data and weights are there", None
    if study and start:  # of an average, the first of its runs
        name = str(study.inside(start.resolve()))
        stem = study.runs.get(study.averages[name].of[0] if name in study.averages else name)
    if shape is None and hf is not None:
        shape, origin = read_hf_shape(hf), f"the shape of {config.init.hf}"
    elif shape is None and start and trained:
        shape, origin = checkpoint_shape(checkpoint_manifest(chosen_checkpoint(start))), f"that of {start}"
    elif shape is None and stem:
        before, _, _ = resolve_run(stem, study)
        shape = (phases_of(before)[-1].config if before.phases else before).model
        origin = f"the shape of {stem.config.name}'s config, as it is not trained yet"
    if shape is None:
        raise ConfigError(f"{config.name}: model: missing, and {start} is not there; give the model's shape")
    builds = study.corpus if study else {}
    names = [str(study.inside(folder.resolve())) for folder in data] if study else []
    asked = [builds[name].config.tokenizer for name in names if name in builds]
    sizes = [shape.vocab_size, *(one.vocab_size for one in asked)]
    sizes += [load_manifest(folder, None).counts["tokenizer"]["vocab_size"] for folder in built]
    sizes += [ids_of(Path(one.path)) for one in asked if one.path and Path(one.path).exists()]
    if not any(sizes):
        raise ConfigError(f"{config.name}: model.vocab_size: not known; build the corpus, or give the size")
    shape = shape.model_copy(update={"vocab_size": max(size or 0 for size in sizes)})
    return config.model_copy(update={"model": shape}), tokens, origin


def plan_run(config: ExperimentConfig, gpus: int, hardware: str, available: Mapping[str, float]) -> DryRun:
    """Plan a complete `config` on `gpus` GPUs of type `hardware`; `available` are the known tokens of pools.

    Raises `ConfigError` for sections that contradict each other or the GPUs, or a run that is too large.
    """
    check_passes(config, available)
    if config.train.train_epochs is not None and config.data.sft is not None:
        pool = config.data.sft.name  # the folder of packed samples is named after its pool
        if pool not in available:
            remedy = "build its corpus, or set it under `corpus: {BUILD: {tokens: ...}}` of a study file"
            raise ConfigError(f"{config.name}: the number of tokens of pool '{pool}' is not known; {remedy}")
        seen = {"train_tokens": round(config.train.train_epochs * available[pool]), "train_epochs": None}
        config = config.model_copy(update={"train": config.train.model_copy(update=seen)})
    check_experiment(config, gpus)
    machine = load_machine(hardware)
    check_recipe(config.precision.fp8_recipe, machine.hardware.capability)
    seconds = gib = 0.0
    for phase in phases_of(config):
        memory.check_memory(phase.config, gpus, memory_gib=machine.hardware.memory_gib)
        planned = PlannedRun(phase.config, gpus)
        seconds += phase.config.train.train_steps * step_time(planned, machine).total
        gib = max(gib, memory.peak_memory(planned).gib)
    steps, pools = run_steps(config), pool_tokens(config).items()
    return DryRun(
        steps=steps,
        tokens=phase.last_token,
        pools={name: (n, n / available[name] if name in available else None) for name, n in pools},
        layout=PlannedRun(config, gpus).name,
        memory_gib=gib,
        step_seconds=seconds / steps,
        gpu_hours=seconds * gpus / 3600,
        disk_bytes=memory.peak_checkpoint_bytes(config),
    )


def plan_models(study: Study, hardware: str) -> list[tuple[str | float, ...]]:
    """A row of `MODEL_HEADINGS` for each model to be scored; the last cell is "yes", or what is wrong."""
    limit, rows = memory.USABLE * load_hardware(hardware).memory_gib, list[tuple[str | float, ...]]()
    for name, row in study.models.items():
        asked, shape = study.evaluation.of(row), known_shapes().get(name)
        if row.hf and (row.hf / "config.json").is_file():
            with suppress(ConfigError):  # of another family: `size` is known
                shape = read_hf_shape(row.hf)
        elif row.shape:
            shape = load_shape(row.shape)
        parameters = shape.num_parameters() if shape and shape.vocab_size else 1e9 * (row.size or 0)
        heads, tensor = shape.num_attention_heads if shape else 64, asked.tensor_model_parallel_size
        sizes, batch = (1, 2, 4, 8, 16, 32, 64), (asked.batch_size, asked.max_new_tokens)
        found = {size: memory.answering_gib(parameters, shape, size, *batch) for size in (*sizes, tensor)}
        fitting = (f"TP {size} fits" for size in sizes if found[size] <= limit and heads % size == 0)
        advice = next(fitting, "lower evaluation.batch_size")
        wrong = f"{limit:.1f} are usable" if found[tensor] > limit else ""
        wrong = f"{heads} heads are no multiple of TP" if heads % tensor else wrong
        weights = Cell(parameters, f"{parameters / 1e9:.2f}B"), figure(2 * parameters / 1e9, ".1f")
        size = (*weights, tensor, figure(found[tensor], ".1f"))
        known = "yes" if shape else "yes, without cache" if parameters else "not known; give size or shape"
        rows.append((name, *size, f"no: {wrong}; {advice}" if wrong else known))
    return rows


def check_stages(study: Study, stages: Iterable[Stage], *, gpu: bool) -> None:
    """Refuse stages to do that need a package which is not installed here; runs are on a `gpu` or not."""
    backend = study.evaluation.backend
    for name, kind in ((stage.name, stage.kind) for stage in stages if not stage.is_done()):
        if kind == "run":
            check_packages(study.runs[name].config, gpu=gpu)
        elif kind == "corpus":
            check_build(study.corpus[name].config)
        elif kind == "evaluation":
            check_evaluation(name)
        check_installed(
            (name, "vllm", kind == "evaluation" and backend == "vllm"),
            (name, "aiohttp", kind == "synthesis" and not study.scripted),
            (name, "scipy", kind == "mixture"),
        )


def check_scored(study: Study, hardware: str, benchmarks: Path | None) -> None:
    """Refuse, before any stage runs, models that are missing or too large, and sets that are not complete."""
    gone = [
        f"{name} (hf download {row.hub or 'ORGANIZATION/NAME'} --local-dir {row.hf})"
        for name, row in study.models.items()
        if row.hf and not (row.hf / "config.json").is_file()
    ]
    if gone:
        what = "download them, or name what is there with --only"
        raise ConfigError(f"models: no Hugging Face folder for {', '.join(gone)}; {what}")
    rows = [row for row in plan_models(study, hardware) if str(row[-1]).startswith("no:")]
    if rows:
        shown = (f"{name} at TP {tensor} ({gib} GiB; {fits})" for name, *_, tensor, gib, fits in rows)
        raise ConfigError(f"models: {', '.join(shown)}: set tensor_model_parallel_size (TP) for {hardware}")
    sets, shots = ",".join(study.evaluation.sets), study.evaluation.shots
    for name, path in choose_sets(str(benchmarks), sets).items() if benchmarks else ():
        examples_for(load_items(path).items, path, shots if isinstance(shots, int) else shots.get(name, 0))


def plan_rows(runs: Mapping[str, DryRun]) -> list[tuple[str | float, ...]]:
    """A row of `RUN_HEADINGS` for each run."""
    rows = list[tuple[str | float, ...]]()
    for name, run in runs.items():
        whole = sum(n for n, _ in run.pools.values())  # of which the last step may see more
        mixed = "\n".join(
            f"{pool} {n / whole:.0%} {scaled(n)} ({'?' if passes is None else f'{passes:.2f}'})"
            for pool, (n, passes) in run.pools.items()
        )
        tokens = Cell(run.tokens, scaled(run.tokens)), Cell(run.pools, mixed)
        memory = Cell(run.memory_gib, f"{run.memory_gib:.3g}")
        step = Cell(run.step_seconds, scaled(run.step_seconds, "s"))
        disk = Cell(run.disk_bytes, scaled(run.disk_bytes, "B"))
        hours = Cell(run.gpu_hours, _hours(run.gpu_hours))
        rows.append((name, Cell(run.steps, f"{run.steps:,}"), *tokens, run.layout, memory, step, disk, hours))
    return rows


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.01 else "<0.01"
