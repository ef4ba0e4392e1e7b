"""Model folders of KSA in Hugging Face's layout, and the conversion of a Qwen3 checkpoint.

A folder has config.json, generation_config.json and model.safetensors (or several such files and an index).
Weights go one tensor at a time into a model without memory of its own: a conversion needs the memory of the
converted model and of one more tensor, where the files lie is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.tensor_files import INDEX, WEIGHTS, TensorFiles
from feedworks.storage import atomic_file, read_json, write_bytes

CONFIG, GENERATION = "config.json", "generation_config.json"
_HEAD, _TABLE, _SUMMARY_TABLE = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.summary_embedding.weight",
)
_ADDED = ("_summary.", "summary_embedding.")
_Model = TypeVar("_Model", Qwen3KsaForCausalLM, Qwen3ForCausalLM)
_Make = Callable[[str, tuple[int, ...], TensorFiles], Tensor]


def save(model: Qwen3KsaForCausalLM | Qwen3ForCausalLM, folder: str | Path) -> None:
    """Write a model so that `load`, or transformers' `AutoModelForCausalLM`, reads it; other files stay.

    Args:
        model: on any device; tied weights are stored once.
        folder: made if need be. Shards of a model that was there, which `load` would read first, go.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state[_HEAD]
    target.mkdir(parents=True, exist_ok=True)
    with atomic_file(target / WEIGHTS) as temporary:
        tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt"})
    for path in (target / INDEX, *target.glob("model-*-of-*.safetensors")):  # another model's, read first
        path.unlink(missing_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    write_bytes(target / GENERATION, model.generation_config.to_json_string().encode())
    write_bytes(target / CONFIG, model.config.to_json_string(use_diff=False).encode())


def load(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Qwen3KsaForCausalLM:
    """Read what `save` wrote, ready for inference.

    Args:
        folder: see the top of this module.
        dtype: of the weights; without it as they are stored.
        device: where they go.

    Raises:
        ModelError: the folder is missing, incomplete, damaged or of another kind of model, or weights are
            NaN or infinite.
    """
    source = Path(folder)
    settings = _settings(source, Qwen3KsaConfig.model_type, "convert it with from_qwen3")
    return _filled(_config(settings, source), source, None, dtype, device)


def from_qwen3(
    folder: str | Path,
    *,
    init: Literal["copy", "random"] = "copy",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **sizes: Any,
) -> Qwen3KsaForCausalLM:
    """Convert a full-attention Qwen3 checkpoint, ready for inference.

    Args:
        folder: config.json and safetensors, one file or several with an index.
        init: `copy` starts the summary rows' projections as the text's, and the summary embedding as the
            mean of the table; `random` draws both as a new model does.
        dtype: of the weights; without it as they are stored.
        device: where they go.
        sizes: what `Qwen3KsaConfig` adds (`chunk`, `summaries`, `windows`, ...), or what replaces the
            checkpoint's (`max_position_embeddings`, `rope_parameters`).

    Raises:
        ConfigError: a size is unknown or out of range.
        ModelError: as `load`; or the checkpoint has layers that read a sliding window.
    """
    if init not in ("copy", "random"):
        raise ConfigError(f"init={init!r}: expected copy or random")
    if unknown := sorted(sizes.keys() - Qwen3KsaConfig.__dataclass_fields__.keys()):
        raise ConfigError(f"{unknown[0]}={sizes[unknown[0]]!r}: Qwen3KsaConfig has no such size")
    source = Path(folder)
    base = _qwen3_settings(source)
    _config(base, source)  # what is wrong without the sizes is the checkpoint's fault
    config = _config(base | sizes, source, ConfigError)
    make = _copied if init == "copy" else _drawn(config.initializer_range)
    return _filled(config, source, make, dtype, device)


def check_qwen3(folder: str | Path) -> int:
    """Return the number of layers of a checkpoint that `from_qwen3` can convert; no number is read.

    Raises:
        ModelError: as `from_qwen3`, but for NaN and infinite weights.
    """
    source = Path(folder)
    config = _config(_qwen3_settings(source), source)
    with torch.device("meta"), TensorFiles(source) as files:
        _check(files, Qwen3KsaForCausalLM(config), converts=True)
    num_layers: int = config.num_hidden_layers
    return num_layers


def as_qwen3(model: Qwen3KsaForCausalLM) -> Qwen3ForCausalLM:
    """Return the decoder without summaries and with full attention in all layers; weights are shared.

    Its logits are those of the states `model.model.text_states(full=True)`.
    """
    added = Qwen3KsaConfig.__dataclass_fields__.keys() - Qwen3Config.__dataclass_fields__.keys()
    settings = {name: value for name, value in model.config.to_dict().items() if name not in added}
    config = Qwen3Config.from_dict(settings | {"model_type": Qwen3Config.model_type, "architectures": None})
    with torch.device("meta"):
        plain = Qwen3ForCausalLM(config)
    state = {name: x for name, x in model.state_dict().items() if not _is_added(name)}
    return _assigned(plain, state, model.device, model.generation_config)


def _is_added(name: str) -> bool:
    return any(part in name for part in _ADDED)


def _settings(folder: Path, expected: str, mend: str) -> dict[str, Any]:
    """Return what config.json says of a model of the expected kind."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{path} is missing: expected the folder of a {expected} model")
    try:
        settings = read_json(path)
    except DataError as error:
        raise ModelError(str(error)) from None
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found != expected:
        known = found in (Qwen3Config.model_type, Qwen3KsaConfig.model_type)
        raise ModelError(
            f"{path}: model_type is {found!r}, expected {expected!r}" + (f": {mend}" if known else "")
        )
    if settings.get("quantization_config"):
        raise ModelError(f"{path}: the weights are quantised, expected plain ones")
    return dict(settings)


def _qwen3_settings(folder: Path) -> dict[str, Any]:
    """Return what config.json says of a full-attention checkpoint, without what a conversion decides."""
    settings = _settings(folder, Qwen3Config.model_type, "read it with load")
    if settings.get("use_sliding_window") or "sliding_attention" in (settings.get("layer_types") or ()):
        raise ModelError(f"{folder / CONFIG}: layers read a sliding window, expected full attention in all")
    return {name: value for name, value in settings.items() if name not in ("layer_types", "architectures")}


def _config(
    settings: dict[str, Any], folder: Path, kind: type[ConfigError | ModelError] = ModelError
) -> Qwen3KsaConfig:
    try:
        config = Qwen3KsaConfig.from_dict(settings | {"model_type": Qwen3KsaConfig.model_type})
    except Exception as error:  # transformers' checks raise many kinds
        raise kind(f"{folder / CONFIG}: {' '.join(str(error).split())}") from None
    assert isinstance(config, Qwen3KsaConfig)
    return config


def _filled(
    config: Qwen3KsaConfig,
    folder: Path,
    make: _Make | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Qwen3KsaForCausalLM:
    """Read a model; `make` gives what a conversion adds."""
    with torch.device("meta"):
        model = Qwen3KsaForCausalLM(config)
    shapes = _shapes(model)
    state: dict[str, Tensor] = {}
    with TensorFiles(folder) as files:
        stored = _check(files, model, converts=make is not None)
        if _HEAD in files and _HEAD not in shapes and not torch.equal(files.read(_HEAD), files.read(_TABLE)):
            raise ModelError(f"{folder}: {_HEAD} differs from {_TABLE}, and config.json ties them")
        for name, shape in shapes.items():
            tensor = files.read(name) if make is None or name in stored else make(name, shape, files)
            state[name] = tensor.to(device=device, dtype=dtype)
    filled: Qwen3KsaForCausalLM = _assigned(model, state, device, _generation(folder))
    return filled


def _shapes(model: Qwen3KsaForCausalLM) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes[_HEAD]
    return shapes


def _check(files: TensorFiles, model: Qwen3KsaForCausalLM, *, converts: bool) -> set[str]:
    """Refuse other tensors than the model's, or than it has before its conversion; return their names."""
    stored = {name: shape for name, shape in _shapes(model).items() if not (converts and _is_added(name))}
    files.check(stored, spare=[_HEAD] if model.config.tie_word_embeddings else [])
    return set(stored)


def _copied(name: str, shape: tuple[int, ...], files: TensorFiles) -> Tensor:
    if name == _SUMMARY_TABLE:
        table_VD = files.read(_TABLE)
        mean_D = table_VD.mean(0, dtype=torch.float32).to(table_VD.dtype)
        return mean_D.repeat(shape[0], 1)
    return files.read(name.replace("_summary.", "_proj."))


def _drawn(scale: float) -> _Make:
    def draw(name: str, shape: tuple[int, ...], files: TensorFiles) -> Tensor:
        kind = files.read(_TABLE).dtype
        return (
            torch.zeros(shape, dtype=kind)
            if name.endswith(".bias")
            else (torch.randn(shape) * scale).to(kind)
        )

    return draw


def _generation(folder: Path) -> GenerationConfig | None:
    """Return what the folder says of generation: the checkpoint's own ends of text."""
    if not (folder / GENERATION).is_file():
        return None
    try:
        return GenerationConfig.from_dict(read_json(folder / GENERATION))
    except Exception as error:  # as in _config
        raise ModelError(f"{folder / GENERATION}: {' '.join(str(error).split())}") from None


def _assigned(
    model: _Model, state: dict[str, Tensor], device: torch.device | str, generation: GenerationConfig | None
) -> _Model:
    """Give an empty model its weights, and what is no weight: the rotary positions' frequencies."""
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = Qwen3RotaryEmbedding(config=model.config).to(device)
    model.config.dtype = model.dtype
    if generation is not None:
        model.generation_config = generation
    model.eval()
    return model
