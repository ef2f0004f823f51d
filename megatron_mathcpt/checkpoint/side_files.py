"""The small files of a Hugging Face folder: kept with a checkpoint, given back with what training changed.

An imported checkpoint has those of its base in `tokenizer/`, a run in `base/`; the tokenizer itself is the
corpus's, whose folder may lack chat templates and generation settings. Folders of older versions, and runs
from scratch, have no base.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_mathcpt.config.hf_config import hf_config, read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape
from megatron_mathcpt.formats import manifest as manifests
from megatron_mathcpt.formats.files import hash_file, write_atomically
from megatron_mathcpt.formats.run_folder import BASE, run_of
from megatron_mathcpt.formats.tokenizer_folder import FILE, GENERATION, SETTINGS, config_ends, read_settings
from megatron_mathcpt.records import JsonObject

CONFIG = "config.json"
TOKENIZERS = (FILE, SETTINGS, "special_tokens_map.json", "tokenizer.model")  # one of them is a tokenizer
_VOCABULARY = ("added_tokens.json", "vocab.json", "merges.txt")  # in files that tokenizer.json replaces
_TEMPLATE = "chat_template.jinja"
_TEMPLATES = (_TEMPLATE, "additional_chat_templates/*.jinja")  # as transformers 5 reads them


def base_of(checkpoint: Path) -> Path | None:
    """The folder with the small files of the weights that training began from, if it is known."""
    run = run_of(checkpoint)
    for folder in (checkpoint / "tokenizer", *([] if run is None else [run / BASE])):
        if (folder / CONFIG).is_file():
            if run is not None and (file := run / manifests.FILE_NAME).is_file():
                found = manifests.read_manifest(file)
                manifests.verify_part(run, found, lambda name: name.startswith(f"{BASE}/"))
            return folder
    return None


def copy_side_files(own: Path, base: Path | None, folder: Path) -> None:
    """Copy the tokenizer in `own`, and the model's settings and what else only `base` has, into `folder`."""
    files = {name: own / name for name in _found(own, (*TOKENIZERS, *_VOCABULARY, *_TEMPLATES))}
    settings = base or own
    files |= {name: settings / name for name in _found(settings, (CONFIG, GENERATION))}
    if base is not None:
        both = own / FILE, base / FILE
        if all(map(Path.is_file, both)) and len({*map(hash_file, both)}) == 1:
            files = {name: base / name for name in _found(base, (*TOKENIZERS, *_VOCABULARY))} | files
        inside = read_settings(own / SETTINGS).get("chat_template")
        if not (inside or _found(own, _TEMPLATES)):
            files |= {name: base / name for name in _found(base, _TEMPLATES)}
            inside = read_settings(base / SETTINGS).get("chat_template")
            if isinstance(inside, str) and _TEMPLATE not in files:
                write_atomically(folder / _TEMPLATE, inside.encode())
    for name, file in files.items():
        write_atomically(folder / name, file.read_bytes())


def _found(folder: Path, patterns: Sequence[str]) -> list[str]:
    files = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]


def write_settings(
    folder: Path,
    base: Path | None,
    shape: DecoderShape,
    *,
    dtype: str | None,
    bos_id: int | None,
    eos_id: Sequence[int],
) -> None:
    """Write `config.json` and `generation_config.json`: the base's own bytes where nothing differs.

    Else the base's fields with those that differ replaced; without a base what the model needs. No `dtype` or
    `bos_id`: as in the base.
    """
    fields, ends = (read_settings(base / CONFIG) if base else {}), config_ends(base) if base else ()
    same, types = {*eos_id} == {*ends}, [key for key in ("dtype", "torch_dtype") if key in fields]
    own = fields[types[0]] if types else dtype or ""
    begin = fields.get("bos_token_id")
    changed = hf_config(shape, dtype=dtype or own, bos_id=begin if bos_id is None else bos_id, eos_id=eos_id)
    if base:
        before = hf_config(read_hf_shape(base), dtype=own, bos_id=begin, eos_id=eos_id if same else ())
        changed = {key: value for key, value in changed.items() if value != before.get(key)}
        if new := changed.pop("dtype", None):
            changed |= dict.fromkeys(types, new)
    if changed:
        _write(folder / CONFIG, fields | changed)
    generation = folder / GENERATION  # read before config.json
    if not same and (generation.is_file() if base else len(eos_id) > 1):
        _write(generation, read_settings(generation) | {"eos_token_id": [*eos_id]})


def _write(path: Path, tree: JsonObject | dict[str, object]) -> None:
    write_atomically(path, (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode())
