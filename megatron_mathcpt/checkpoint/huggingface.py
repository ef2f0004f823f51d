"""Hugging Face folders: read weights tensor by tensor, convert them to a checkpoint, compare logits.

Megatron-Core packs query, key and value by key-value head ([q heads of the group; k; v] on dimension 0, group
after group), and gate above up. Only comparing logits needs a whole model in memory.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_mathcpt import parallel
from megatron_mathcpt.checkpoint.save import DataOf, without_crc32
from megatron_mathcpt.config import weight_map
from megatron_mathcpt.config.experiment import ParallelSection, PrecisionSection
from megatron_mathcpt.config.hf_config import read_hf_shape
from megatron_mathcpt.config.shape import DecoderShape, padded_vocab_size
from megatron_mathcpt.errors import CheckpointError, one_line
from megatron_mathcpt.formats.tokenizer_folder import read_tokenizer
from megatron_mathcpt.model import weights as tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Both models compute in fp32 from the same weights, so only rounding differs: by 5e-7 for a small model.
_LOGIT_TOLERANCE, _MORE_ERROR = 1e-4, 2
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_SAMPLES, _LENGTH = 2, 128
_TEXT = (
    "A train covers 90 km in 1.5 hours. How fast is it? 90 / 1.5 = 60, so the answer is 60 km/h. "
    "已知函数 $f(x)=\\frac{x^2-1}{x+1}$，求 $f(3)$ 的值。解：$f(3)=\\frac{8}{4}=2$，故答案为 2。\n"
)


def pack(key: str, parts: list[torch.Tensor], shape: DecoderShape) -> torch.Tensor:
    """Megatron-Core's tensor from Hugging Face's parts."""
    if key not in (weight_map.QKV, weight_map.QKV_BIAS):
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    grouped = [part.unflatten(0, (shape.query_groups, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def unpack(key: str, whole: torch.Tensor, shape: DecoderShape) -> list[torch.Tensor]:
    """Hugging Face's parts of Megatron-Core's tensor; undoes `pack` bit for bit."""
    rows = [size[0] for size in weight_map.packed_sizes(shape)[key].values()]
    if key not in (weight_map.QKV, weight_map.QKV_BIAS):
        return list(whole.split(rows))
    grouped = whole.unflatten(0, (shape.query_groups, -1))
    return [part.flatten(0, 1) for part in grouped.split([n // shape.query_groups for n in rows], dim=1)]


class HuggingFaceWeights:
    """`WeightSource` of the weight files of a folder that count, packed on demand, each in its own type."""

    def __init__(self, folder: Path, shape: DecoderShape) -> None:
        self._shape, self._stored = shape, weight_map.check_weights(folder, shape)
        if shape.share_embeddings_and_output_weights and _HEAD in self._stored:
            # By their bits; transformers would keep both.
            one, other = (self._tensor(name).contiguous().view(torch.uint8) for name in (_HEAD, _EMBEDDING))
            if not torch.equal(one, other):
                what = f"{_HEAD} differs from {_EMBEDDING}, which config.json ties"
                remedy = "set tie_word_embeddings to false to keep both"
                raise CheckpointError(f"{self._stored[_HEAD].file}: {what}; {remedy}")

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        names = weight_map.hf_sizes(self._shape, key, layer)
        return pack(key, [self._tensor(name) for name in names], self._shape)

    def _tensor(self, name: str) -> torch.Tensor:
        path = self._stored[name].file
        try:
            with safe_open(path, framework="pt") as file:
                found: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:  # it is cut, or its header is damaged
            raise CheckpointError(f"{path}: not read as safetensors ({error}); copy it again") from error
        return found


def hf_weights(folder: Path, new_rows: range) -> tensors.WeightSource:
    """The weights of a folder, with rows of tokens that its tokenizer lacks."""
    source = HuggingFaceWeights(folder, read_hf_shape(folder))
    return tensors.ExtendedWeights(source, new_rows) if new_rows else source


def write_checkpoint_files(
    source: tensors.WeightSource, shape: DecoderShape, folder: Path, empty: Iterable[str] = ()
) -> None:
    """Write every tensor of `source` into the empty `folder`, in Megatron-Core's torch_dist format.

    A key has one type, that of its first layer in `source`. `empty` are keys of objects that are None.
    """

    # Not by Megatron-Core's own save, which needs process groups and the whole model in memory.
    def read(item: WriteItem) -> torch.Tensor | io.BytesIO:
        if item.tensor_data is None:
            torch.save([None], nothing := io.BytesIO())
            return nothing
        key, place = item.index.fqn, item.tensor_data.chunk
        tensor = source.read(key, place.offsets[0] if key.startswith(weight_map.LAYERS) else None)
        missing = place.sizes[-tensor.dim()] - len(tensor)
        tensor = F.pad(tensor, (0, 0, 0, missing)) if missing else tensor
        return tensor.reshape(place.sizes)

    dtypes = {key: source.read(key, layer).dtype for key, layer in weight_map.tensor_keys(shape) if not layer}
    items = [_write_item(key, layer, shape, dtypes[key]) for key, layer in weight_map.tensor_keys(shape)]
    items += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in empty]
    writer = FileSystemWriter(folder, sync_files=False)
    writer.set_up_storage_writer(True)
    plans, metadata = create_default_global_save_plan([SavePlan(items)])
    (plan,) = writer.prepare_global_plan(plans)
    with without_crc32():
        results = writer.write_data(plan, DataOf(read)).wait()
    writer.finish(metadata, [results])
    torch.save({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


def _write_item(key: str, layer: int | None, shape: DecoderShape, dtype: torch.dtype) -> WriteItem:
    """Describe a tensor to torch's writer; a layer's is a slice of the stored tensor of all layers."""
    size = weight_map.tensor_sizes(shape)[key]
    if key in (weight_map.EMBEDDING, weight_map.OUTPUT):
        size = (padded_vocab_size(size[0]), *size[1:])
    whole, offset = size, (0,) * len(size)
    if layer is not None:
        whole, offset, size = (shape.num_layers, *size), (layer, *offset), (1, *size)
    chunk = ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(size))
    data = TensorWriteData(chunk=chunk, properties=TensorProperties(dtype=dtype), size=torch.Size(whole))
    return WriteItem(MetadataIndex(key, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


@torch.no_grad()
def compare_logits(
    source: tensors.WeightSource, shape: DecoderShape, folder: Path, new_rows: range = range(0)
) -> float:
    """Largest logit difference of Megatron-Core and transformers; `CheckpointError` if above rounding."""
    tokens = _tokens(shape, folder)
    some = torch.tensor(new_rows[:_LENGTH], dtype=tokens.dtype)
    tokens[0, : len(some)] = some
    # Not in the one type that transformers would take for all tensors; new rows are rounded as ours are.
    reference = load_reference(folder, new_rows, dtype="float32").eval()
    keys = [key for key in (weight_map.EMBEDDING, weight_map.OUTPUT) if key in weight_map.packed_sizes(shape)]
    parts = (reference.get_input_embeddings(), reference.get_output_embeddings())
    for part, key in zip(parts, keys, strict=False) if new_rows else ():
        rows = part.weight.data[new_rows.start : new_rows.stop]
        rows.copy_(rows.to(source.read(key, None).dtype))
    ours, theirs = _megatron_logits(source, shape, tokens), reference(tokens).logits
    difference = float((ours - theirs).abs().max())
    if not theirs.isfinite().all():
        raise CheckpointError(f"{folder}: transformers' logits are not finite; its weights are damaged")
    if not difference <= _LOGIT_TOLERANCE:
        # Rounding may do that where activations are large, as Qwen2.5's: then both are as far from fp64.
        exact = reference.double()(tokens).logits
        error, own = (float((logits - exact).abs().max()) for logits in (theirs, ours))
        if not own <= _MORE_ERROR * error:
            errors = f"by {difference:.2e}, from those in fp64 by {error:.2e} and {own:.2e}"
            problem = f"its logits and Megatron-Core's differ {errors}"
            raise CheckpointError(f"{folder}: {problem}; the conversion must not be used")
    return difference


def load_reference(folder: Path, new_rows: range = range(0), **options: str) -> "PreTrainedModel":
    """transformers' model of a folder's `*.safetensors`, with rows of new tokens as in `hf_weights`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    only = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    # Not as config.json says, which may ask for kernels that are not here, or for results as tuples.
    ours = {"return_dict": True, "attn_implementation": "sdpa"}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **only, **ours, **options)
    except Exception as error:  # of any type: transformers checks little of config.json
        reason = one_line(str(error))[:200]
        raise CheckpointError(f"{folder}: not loaded by transformers ({reason}); is it damaged?") from error
    for part in (model.model.embed_tokens, model.lm_head) if new_rows else ():  # if tied twice the same
        part.weight.data = tensors.with_mean_rows(part.weight.data, new_rows)
    return model


def _tokens(shape: DecoderShape, folder: Path) -> torch.Tensor:
    assert shape.vocab_size is not None
    rows = torch.randint(shape.vocab_size, (_SAMPLES, _LENGTH), generator=torch.Generator().manual_seed(0))
    if (folder / "tokenizer.json").is_file():
        text = read_tokenizer(folder / "tokenizer.json").encode(_TEXT).ids
        real = [token for token in text if token < shape.vocab_size] * _LENGTH
        rows = torch.cat([rows, torch.tensor([real[:_LENGTH]])]) if real else rows
    return rows


@torch.no_grad()
def _megatron_logits(source: tensors.WeightSource, shape: DecoderShape, tokens: torch.Tensor) -> torch.Tensor:
    from megatron_mathcpt.model.language_model import build_model

    sizes = ParallelSection(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    layout = parallel.start_alone(sizes)
    try:
        (model,) = build_model(shape, layout, PrecisionSection(params_dtype="fp32"))
        tensors.fill([model], source)
        positions = torch.arange(tokens.shape[1], device=layout.device).expand_as(tokens)
        logits = model.eval()(tokens.to(layout.device), positions, None)
    finally:
        parallel.stop()
    return torch.as_tensor(logits)[..., : shape.vocab_size].float().cpu()
