"""Reading the settings that a checkpoint stores in `generation_config.json`."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, logging

from .configuration_diffusion import DiffusionGenerationConfig, settings_of


logger = logging.get_logger(__name__)


def read_stored_settings(
    folder_or_repo: str | os.PathLike,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str = "",
    **fields: Any,
) -> DiffusionGenerationConfig | None:
    """
    The settings of a checkpoint. Those that cannot work are returned as they stand, with a warning: they keep nobody
    from loading the model, and `generate` refuses them.

    Args:
        folder_or_repo (`str` or `os.PathLike`):
            Folder or repository of the checkpoint.
        cache_dir, force_download, local_files_only, token, revision, subfolder (*optional*):
            As in `from_pretrained`.
        fields (`dict[str, Any]`, *optional*):
            Fields that replace those of the file.

    Returns:
        [`DiffusionGenerationConfig`] or `None`: The settings, `None` if the checkpoint has no such file.

    Raises:
        OSError: If the file cannot be read: it is no JSON object, or the Hub does not give it. Offline or with
            `local_files_only`, a file that the cache does not have counts as one that does not exist.
    """
    if os.path.isdir(folder_or_repo):
        path = Path(folder_or_repo, subfolder, GENERATION_CONFIG_NAME)
        if not path.is_file():
            return None
    else:
        name = f"{subfolder}/{GENERATION_CONFIG_NAME}" if subfolder else GENERATION_CONFIG_NAME
        repo, cache_dir = str(folder_or_repo), None if cache_dir is None else str(cache_dir)
        try:
            path = Path(
                hf_hub_download(
                    repo,
                    name,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    revision=revision,
                )
            )
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError as error:
            # raised, too, where the Hub answers with anything but the file
            known = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
            if local_files_only or is_offline_mode() or known is not None:
                return None
            raise OSError(
                f"Cannot load {name} of {repo}, so that its settings are not known: {error.__cause__ or error}"
            ) from error
    try:
        values = DiffusionGenerationConfig._dict_from_json_file(path)
    except ValueError as error:
        raise OSError(f"{path} is no JSON file: {error}. Load the checkpoint again, or delete the file.") from error
    if not isinstance(values, dict):
        raise OSError(
            f"{path} holds a {type(values).__name__}, not settings; write a JSON object, or delete the file."
        )
    try:
        settings = DiffusionGenerationConfig.from_dict(values, **fields)
    except (TypeError, ValueError) as error:
        logger.warning(f"{path} cannot be used, and `generate` will refuse it: {error}")
        settings = DiffusionGenerationConfig()
        for field, value in {**values, **fields}.items():
            setattr(settings, field, value)
    settings._original_object_hash = hash(settings)
    return settings


def refuse_stored(config: GenerationConfig) -> None:
    """
    Says what is wrong with the settings that a model was loaded with.

    Args:
        config ([`~transformers.GenerationConfig`]):
            The generation config of a model.

    Raises:
        ValueError: If they cannot work, with the field and its value.
    """
    values = settings_of(config)
    try:
        DiffusionGenerationConfig.from_dict(values)
        return
    except (TypeError, ValueError) as error:
        fault = error
    for name, value in values.items():
        try:
            DiffusionGenerationConfig.from_dict({name: value})
        except (TypeError, ValueError) as error:
            fault = ValueError(f"`{name}={value!r}`: {error}")
            break
    raise ValueError(
        f"The generation config of the model cannot be used. {fault} Correct it in generation_config.json or in "
        "`model.generation_config`, or pass another value."
    ) from fault


__all__ = ["read_stored_settings", "refuse_stored"]
