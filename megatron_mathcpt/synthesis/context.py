"""What every conversation of a run shares: the run's seed and where its prompts are."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_mathcpt.config.synthesis import Sampling
from megatron_mathcpt.records import Problem
from megatron_mathcpt.synthesis.method import Request, request_seed
from megatron_mathcpt.synthesis.prompt import load_prompt


@dataclass(frozen=True)
class Context:
    """Makes requests that are the same in every run of the same config."""

    run_seed: int
    prompt_folder: str | None = None

    def request(
        self,
        server: str,
        prompt: str,
        seed: Problem,
        values: Mapping[str, str],
        sampling: Sampling,
        sample: int,
    ) -> Request:
        """A request to `server` with the prompt file `prompt` in the seed's language."""
        rendered = load_prompt(prompt, seed.language, self.prompt_folder).render(values)
        number = request_seed(self.run_seed, seed.id, f"{prompt} {server}", sample)
        return Request(server, rendered, sampling, number)
