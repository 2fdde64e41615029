"""The configuration of a checkpoint directory, from its files in any of the published layouts, and back:

GLM-ASR, Transformers   `audio_config`, `text_config`       + `processor_config.json`, `generation_config.json`
GLM-ASR, original       `whisper_config`, `lm_config`       (revision 91967ea, before 2025-12-27)
Whisper                 `d_model`, `encoder_layers`, ...    + `preprocessor_config.json`, `generation_config.json`

CTranslate2's has almost nothing in its `config.json`: see `ctranslate2.read_config`.
"""

from pathlib import Path

from ..config import EncoderDecoderConfig, GlmAsrConfig
from ..errors import CheckpointError
from . import glm_asr_json, whisper_json
from .json_file import Json, read_json


def read_config(directory: str | Path) -> GlmAsrConfig | EncoderDecoderConfig:
    """The configuration of a checkpoint directory. Raises CheckpointError."""
    directory = Path(directory)
    config = read_json(directory / "config.json")
    kind = config.get("model_type")
    is_glm_asr = kind == "glmasr" or glm_asr_json.is_original(config)
    if not is_glm_asr and kind not in ("whisper", "whisper-waveform"):
        raise CheckpointError(
            f"{directory}: config.json: model_type is {kind!r}; this package runs 'glmasr' (GLM-ASR, in Transformers "
            "or original format) and 'whisper' (Whisper and the article's system)"
        )

    processor = _optional(directory / ("processor_config.json" if is_glm_asr else "preprocessor_config.json"))
    generation = _optional(directory / "generation_config.json")
    if not is_glm_asr and not processor:  # as Transformers >= 5 saves a Whisper
        processor = _optional(directory / "processor_config.json").get("feature_extractor", {})
    try:
        if is_glm_asr:
            return glm_asr_json.from_published(config, processor, generation)
        return whisper_json.from_published(config, processor, generation)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def _optional(path: Path) -> Json:
    return read_json(path) if path.is_file() else {}


def to_published(config: GlmAsrConfig | EncoderDecoderConfig, dtype: object) -> dict[str, Json]:
    """File name -> JSON object, as Transformers writes them; `read_config` reads them back.

    dtype   of the weights beside them: a torch type or its name
    """
    name = str(dtype).removeprefix("torch.")
    if isinstance(config, GlmAsrConfig):
        return glm_asr_json.to_published(config, name)
    return whisper_json.to_published(config, name)
