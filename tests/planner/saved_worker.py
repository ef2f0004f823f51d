"""One of two tensor-parallel processes: prints the bytes that one more layer saves."""

import json
import sys

from test_against_megatron import GROUPED, build, saved_bytes

from megatron_mathcpt import parallel
from megatron_mathcpt.config.experiment import ParallelSection
from megatron_mathcpt.cpu import use_cpu

SEQUENCES, LENGTH = 2, 96


def main() -> None:
    use_cpu()
    sequence_parallel = sys.argv[1] == "sequence_parallel"
    sizes = ParallelSection(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=1, sequence_parallel=sequence_parallel
    )
    with parallel.joined(sizes, 1) as layout:
        found = {}
        for dtype in ("fp32", "bf16"):
            deeper = GROUPED.model_copy(update={"num_layers": GROUPED.num_layers + 1})
            more = saved_bytes(build(deeper, layout, dtype), SEQUENCES, LENGTH)
            found[dtype] = more - saved_bytes(build(GROUPED, layout, dtype), SEQUENCES, LENGTH)
        if layout.is_writer:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
