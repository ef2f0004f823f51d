"""Methods that ask no server run straight through the stream, from file to file."""

from collections.abc import Iterable

from megatron_mathcpt.config.synthesis import RetrospectiveEnhancement
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.lineage import outcome_row
from megatron_mathcpt.synthesis.output import MethodWriter
from megatron_mathcpt.synthesis.retrospective_enhancement import NAME, enhance
from megatron_mathcpt.synthesis.tokens import TokenCounter


def run_local(
    seeds: Iterable[tuple[int, Problem]],
    settings: RetrospectiveEnhancement,
    run_seed: int,
    writer: MethodWriter,
    count_tokens: TokenCounter,
) -> None:
    """Write one outcome for each seed and sample, until the seeds end or the writer's cap is reached."""
    for _, seed in seeds:
        for sample in range(settings.samples):
            outcome = enhance(seed, sample, settings, run_seed)
            tokens = sum(map(count_tokens, outcome.records))
            if not writer.write(seed.id, sample, tokens, outcome_row(outcome, NAME, seed, sample, [])):
                return
