"""The phases of a run: spans of steps, each with a complete config of its own.

A run without `phases` is one phase. Others begin at the first step that starts at or after their
`from_tokens`, with the settings of the phase before and their own changes; the first one is called "main".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_mathcpt.config.experiment import ExperimentConfig, PhaseSection
from megatron_mathcpt.errors import ConfigError

# Fields of a phase by the section whose fields they replace.
_SECTIONS = {
    "data": ("blend",),
    "optimizer": ("lr", "min_lr"),
    "model": ("rotary_base", "max_position_embeddings"),
    "train": ("seq_length", "micro_batch_size", "global_batch_size"),
}


@dataclass(frozen=True)
class Phase:
    """Steps `first_step` + 1 to `last_step`; `config.train.train_tokens` are the phase's alone.

    Before it the run has seen `first_sample` samples and `first_token` tokens. Its schedule is counted over
    the tokens in `schedule_span` of the run: from the phase that set it to the next one that sets another.
    """

    name: str
    config: ExperimentConfig
    first_step: int
    first_sample: int
    first_token: int
    schedule_span: tuple[int, int]

    @property
    def last_step(self) -> int:
        return self.first_step + self.config.train.train_steps

    @property
    def last_token(self) -> int:
        return self.tokens(self.last_step)

    def samples(self, step: int) -> int:
        """Samples of the run up to `step`, of which the phase's own begin at `first_sample`."""
        return self.first_sample + (step - self.first_step) * self.config.train.global_batch_size

    def tokens(self, step: int) -> int:
        """Tokens of the run up to `step`."""
        return self.first_token + (step - self.first_step) * self.config.train.tokens_per_step


def phases_of(config: ExperimentConfig) -> tuple[Phase, ...]:
    """The phases of a run whose `train_tokens` are known, in order; `ConfigError` for one without a step."""
    assert config.train.train_tokens is not None
    given = [("main", PhaseSection(from_tokens=0)), *config.phases.items()]
    ends = [phase.from_tokens for _, phase in given[1:]] + [config.train.train_tokens]
    own, phases = config.model_copy(update={"phases": {}}), list[Phase]()
    step = sample = token = began = 0
    for (name, changes), end in zip(given, ends, strict=True):
        own = _changed(own, changes)
        if end == 0:  # another phase begins with the run
            continue
        steps = -(-(end - token) // own.train.tokens_per_step)
        if steps < 1:
            remedy = "change its from_tokens or the next one's"
            raise ConfigError(f"phases: '{name}' has no step of its own; {remedy}")
        # A run of one phase keeps its budget as it is given, which the last step may exceed.
        budget = steps * own.train.tokens_per_step if config.phases else end
        phase = own.model_copy(update={"train": own.train.model_copy(update={"train_tokens": budget})})
        began = token if changes.schedule else began
        phases.append(Phase(name, phase, step, sample, token, (began, 0)))
        step = phases[-1].last_step
        sample, token = phases[-1].samples(step), phases[-1].tokens(step)
    starts = sorted({*(phase.schedule_span[0] for phase in phases), token})
    ended = dict(pairwise(starts))
    spans = ((phase.schedule_span[0], ended[phase.schedule_span[0]]) for phase in phases)
    return tuple(replace(phase, schedule_span=span) for phase, span in zip(phases, spans, strict=True))


def _changed(config: ExperimentConfig, changes: PhaseSection) -> ExperimentConfig:
    given = {name: value for name, value in changes if value is not None}
    update = {"schedule": given["schedule"]} if "schedule" in given else dict[str, object]()
    for section, names in _SECTIONS.items():
        found, own = getattr(config, section), {name: given[name] for name in names if name in given}
        if own and found is not None:  # the shape may be that of the starting weights
            update[section] = found.model_copy(update=own)
    return config.model_copy(update=update)


def phase_at(phases: Sequence[Phase], step: int) -> int:
    """The number of the phase that has `step`, counted from 1; that of step 0 is the first."""
    return next(number for number, phase in enumerate(phases) if step <= phase.last_step)


def run_steps(config: ExperimentConfig) -> int:
    """Optimizer steps of the whole run."""
    return phases_of(config)[-1].last_step


def pool_tokens(config: ExperimentConfig) -> dict[str, float]:
    """Tokens that the run takes from each pool; packed samples are a pool named after their folder."""
    if config.data.sft is not None:
        return {config.data.sft.name: float(config.train.train_tokens or 0)}
    tokens = dict.fromkeys(config.pools, 0.0)
    for phase in () if config.train.train_tokens is None else phases_of(config):
        for pool, share in phase.config.data.shares().items():
            tokens[pool] += share * (phase.config.train.train_tokens or 0)
    return tokens
