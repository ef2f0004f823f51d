"""Exports are whole: side files byte for byte, files of bounded size, a card of what is known, the hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from megatron_mathcpt.checkpoint.convert import export_to_hf, import_from_hf
from megatron_mathcpt.config.experiment import ExperimentConfig
from megatron_mathcpt.errors import CheckpointError
from megatron_mathcpt.formats.evaluation_folder import KIND, Results, TaskScore, write_evaluation
from megatron_mathcpt.formats.files import hash_file
from megatron_mathcpt.formats.manifest import load_manifest, write_manifest
from megatron_mathcpt.formats.run_folder import chosen_checkpoint
from megatron_mathcpt.formats.tokenizer_folder import ids_of
from tests.support.begun_corpora import BACK, corpus_of
from tests.support.model_hub import COMMIT, TOKEN, model_hub
from tests.support.small_models import write_random_llama
from tests.support.tokenizers import save_llama3
from tests.support.training_runs import train

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot|>{% endfor %}"
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
OURS = {"manifest.json", ".lock", "README.md"}


def write_base(folder: Path) -> Path:
    """A published base: transformers' own files, and others that only some readers need."""
    save_llama3(folder)
    size = {"vocab_size": ids_of(folder), "num_attention_heads": 4, "max_position_embeddings": 256}
    write_random_llama(folder, 1, **SIZES, **size, bos_token_id=0, eos_token_id=1)
    tree = json.loads((folder / "config.json").read_text())
    tree["torch_dtype"] = tree.pop("dtype")
    config = {"an_unknown_field": {"a": [1e-05, "é"]}} | tree
    (folder / "config.json").write_text(json.dumps(config, indent=4, ensure_ascii=False), encoding="utf-8")
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [1, 2],\n "do_sample": true, "top_p": 0.9}'
    )
    (folder / "chat_template.jinja").write_text(CHAT)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if not name.endswith("safetensors")}


def convert(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "megatron_mathcpt", "convert", *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("export") / "Base-1")


@pytest.fixture(scope="module")
def checkpoint(base: Path) -> Path:
    import_from_hf(base, base.parent / "checkpoint", verify=False)
    return base.parent / "checkpoint"


def test_an_import_is_exported_byte_for_byte_and_loads(base: Path, tmp_path: Path) -> None:
    """C5."""
    assert not convert("from-hf", base, "--out", tmp_path / "checkpoint", "--no-verify").returncode
    done = convert("to-hf", tmp_path / "checkpoint", "--out", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    back = files_in(tmp_path / "back")
    assert {name: data for name, data in back.items() if name not in OURS} == files_in(base)
    ours, theirs = (hash_file(folder / "model.safetensors") for folder in (tmp_path / "back", base))
    assert ours == theirs, "written by safetensors, it has other bytes"
    assert {*load_manifest(tmp_path / "back", "hf").outputs} == {*files_in(base), "model.safetensors"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back", trust_remote_code=False)
    assert tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tokenize=False) == "a: b<|eot|>"
    assert GenerationConfig.from_pretrained(tmp_path / "back").eos_token_id == [1, 2]


def test_an_unfinished_export_and_weights_without_meaning_are_refused(
    checkpoint: Path, base: Path, tmp_path: Path
) -> None:
    export_to_hf(checkpoint, tmp_path / "out", verify=False)
    (tmp_path / "out" / "manifest.json").unlink()  # as if it was killed before its last file
    with pytest.raises(CheckpointError, match="out: an export that did not finish; run it again"):
        import_from_hf(tmp_path / "out", tmp_path / "again")
    shutil.copytree(base, tmp_path / "nan")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="nan: transformers' logits are not finite; its weights are"):
        import_from_hf(tmp_path / "nan", tmp_path / "again")


def test_large_models_are_several_files_that_transformers_reads(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_mathcpt.checkpoint import hf_export

    export_to_hf(checkpoint, tmp_path / "one", verify=False)
    monkeypatch.setattr(hf_export, "MAX_FILE_BYTES", 100_000)
    export_to_hf(checkpoint, tmp_path / "many")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    whole, index = load_file(tmp_path / "one" / "model.safetensors"), {}
    for name in files:
        part = load_file(tmp_path / "many" / name)
        assert sum(tensor.nbytes for tensor in part.values()) <= 100_000 or len(part) == 1
        assert all(torch.equal(whole[key], tensor) for key, tensor in part.items())
        index |= dict.fromkeys(part, name)
    found = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert found["weight_map"] == index and index.keys() == whole.keys()
    assert found["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name, file in load_manifest(tmp_path / "many", "hf").outputs.items():
        data = (tmp_path / "many" / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "many")
    assert all(torch.equal(tensor, whole[key]) for key, tensor in model.state_dict().items())


def test_each_tensor_keeps_its_type(base: Path, tmp_path: Path) -> None:
    from megatron_mathcpt.checkpoint.hf_export import ExportOptions, write_hf_folder
    from megatron_mathcpt.config.hf_config import read_hf_shape
    from megatron_mathcpt.config.weight_map import OUTPUT
    from megatron_mathcpt.model.weights import RandomWeights

    shape = read_hf_shape(base)
    types = {OUTPUT: torch.float32}
    read = RandomWeights(shape, 1).read
    source: Any = SimpleNamespace(read=lambda key, at: read(key, at).to(types.get(key, torch.bfloat16)))
    options = ExportOptions(dtype_of=lambda key: types.get(key, torch.bfloat16))
    write_hf_folder(source, shape, tmp_path, eos_id=1, options=options)
    found = load_file(tmp_path / "model.safetensors")
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float32} == {"lm_head.weight"}
    assert torch.equal(found["lm_head.weight"], read(OUTPUT, None))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps in bf16 on two pools, from a base in the hub's cache that is removed; a token is new."""
    root = tmp_path_factory.mktemp("run")
    cache = root / "cache" / "models--owner--Base-1"
    folder = write_base(cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    corpus = corpus_of(root / "corpus", folder, added_tokens=[BACK])
    for name in ("chat_template.jinja", "generation_config.json"):  # as in a corpus of a plain tokenizer
        (corpus / "tokenizer" / name).unlink()
    manifest = load_manifest_of(corpus)
    write_manifest(corpus, "corpus", inputs=manifest.inputs, counts=manifest.counts, config=manifest.config)
    sizes = {"seq_length": 64, "micro_batch_size": 2, "global_batch_size": 2}
    tree = {
        **{"name": "a_run|*", "seed": 1, "init": {"hf": "owner/Base-1"}},
        "data": {"corpus": str(corpus), "blend": {"general": 3.0, "problem_solving": 1.0}},
        "optimizer": {"lr": 3e-3},
        "schedule": {"lr_decay_style": "constant"},
        "parallel": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
        "precision": {"params_dtype": "bf16"},
        "train": {"train_tokens": 2560} | sizes,
        "checkpoint": {"interval": 100},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(root / "cache"))
        train(ExperimentConfig.model_validate_json(json.dumps(tree)), root / "run")
    folder.rename(root / "Base-1")
    return root / "run"


def load_manifest_of(corpus: Path) -> Any:
    from megatron_mathcpt.formats.manifest import read_manifest

    return read_manifest(corpus / "manifest.json")


def test_a_run_has_what_its_removed_base_had(run: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "out", run.parent / "Base-1"
    export_to_hf(run, out)
    before, after = (json.loads((folder / "config.json").read_text("utf-8")) for folder in (base, out))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed == {"vocab_size", "torch_dtype"}
    new = before["vocab_size"]
    assert (after["vocab_size"], after["torch_dtype"]) == (new + 1, "bfloat16")
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert not (out / "vocab.json").exists()  # which lacks the new token
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert tokenizer(BACK, add_special_tokens=False).input_ids == [new]
    assert tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tokenize=False) == "a: b<|eot|>"


def test_a_checkpoint_without_kept_files_is_exported_as_before(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "base")
    (tmp_path / "run" / "manifest.json").unlink()
    step = chosen_checkpoint(tmp_path / "run")
    export_to_hf(step, tmp_path / "out", verify=False)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["eos_token_id"], found["bos_token_id"]) == ([1, 2], 0)
    assert not {"an_unknown_field", "torch_dtype"} & found.keys()
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 2]


def test_the_card_has_the_numbers_of_the_manifests(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_to_hf(run, out, verify=False)
    card = (out / "README.md").read_text()
    front, text = card.removeprefix("---\n").split("\n---\n", 1)
    known = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    assert yaml.safe_load(front) == {"base_model": "owner/Base-1"} | known
    assert f"Its base is owner/Base-1@{COMMIT} on" in text
    manifest = load_manifest(chosen_checkpoint(run), "checkpoint")
    counts, rows = manifest.counts, {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.replace("\\", "") for cell in line.strip("| ").split(" | ")]
            rows[cells[0]] = cells[1:]
    for pool, share, asked in (("general", "75.0%", 1920), ("problem_solving", "25.0%", 640)):
        seen, available = (counts["tokens_by_source"][pool][name] for name in ("seen", "available"))
        assert rows[pool][:4] == [share, f"{asked:,}", f"{seen:,}", f"{seen / available:.2f}"]
    assert rows["batch"] == ["128 tokens: 2 sequences of 64"]
    assert rows["optimizer"][0].startswith("lr 0.003, weight_decay 0.1, adam_beta1 0.9, adam_beta2 0.95, ")
    assert rows["schedule"] == ["lr_decay_style constant, lr_wsd_decay_fraction 0.1"]
    assert "# a\\_run\\|\\*\n" in text
    assert f"weights Base-1 (fingerprint `{manifest.inputs['hf']}`) for 20 steps, 2,560 tokens" in text
    assert "- Corpus c: not decontaminated." in text and "## Scores" not in text

    export_to_hf(run, tmp_path / "again", verify=False)
    assert (tmp_path / "again" / "README.md").read_text() == card
    # Scores of this model, by hand 3 of 10: Wilson's interval is 10.8 to 60.3 %.
    score = TaskScore(n=10, correct=3, accuracy=0.3, stderr=0.15, data_sha256="0")
    for name, model in (("own", load_manifest(out, "hf").fingerprint()), ("other", "f" * 64)):
        found = Results(model="m", tasks={"gsm8k": score})
        (tmp_path / name).mkdir()
        write_evaluation(tmp_path / name, found, {}, inputs={"model": model}, config={"backend": "hf"})
    export_to_hf(run, out, scores=[tmp_path / "own"])
    assert "| gsm8k | 10 | 0 | 30.0 (10.8 to 60.3) |" in (out / "README.md").read_text()
    with pytest.raises(CheckpointError, match="other: has the scores of another model"):
        export_to_hf(run, out, scores=[tmp_path / "other"])
    edited = (out / "README.md").read_text().replace("## Licence", "## License: mine")
    (out / "README.md").write_text(edited)
    assert export_to_hf(run, out).was_there
    assert (out / "README.md").read_text() == edited
    assert load_manifest(tmp_path / "own", KIND)


def test_a_model_of_the_hub_is_read_by_id_and_pushed_back(base: Path, tmp_path: Path) -> None:
    with model_hub() as (environment, hub):
        environment["HF_HUB_CACHE"] = str(tmp_path / "cache")
        files = {name: (base / name).read_bytes() for name in files_in(base)}
        weights = {"model.safetensors": (base / "model.safetensors").read_bytes()}
        hub.repositories["owner/sums"] = files | weights
        out = tmp_path / "checkpoint"
        done = convert("from-hf", "owner/sums@main", "--out", out, "--no-verify", **environment)
        assert done.returncode == 0, done.stderr
        assert load_manifest(out, "checkpoint").counts["base"] == f"owner/sums@{COMMIT}"
        push = ("to-hf", out, "--out", tmp_path / "back", "--no-verify", "--push")
        wrong = convert(*push, "owner/new", **environment | {"HF_TOKEN": "hf_wrongToken"})
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
        assert "hf_wrongToken" not in wrong.stderr and not hub.created
        assert not (tmp_path / "back").exists()
        assert "give OWNER/NAME" in convert(*push, "new", **environment).stderr
        done = convert(*push, "owner/new", **environment)
        assert done.returncode == 0, done.stderr
        assert f"pushed to {environment['HF_ENDPOINT']}/owner/new/commit/{COMMIT}" in done.stdout
        (row,) = hub.created
        assert row["name"] == "new" and (row.get("private") or row["visibility"] == "private")
        pushed = hub.repositories["owner/new"]
        assert {name: pushed[name] for name in files} == files
        assert pushed.keys() == {*files, "model.safetensors", "README.md"}
        card = pushed["README.md"].decode()
        assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "owner/sums"
        assert TOKEN not in done.stdout + done.stderr + card
        gone = convert("from-hf", "owner/none", "--out", tmp_path / "none", **environment)
        assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
        assert "owner/none: no such folder here; as a hub id: the hub refuses" in gone.stderr
    offline = convert("from-hf", "owner/none", "--out", tmp_path / "none", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr.count("\n")) == (2, 1)
    assert "as a hub id: the hub cannot be reached" in offline.stderr
