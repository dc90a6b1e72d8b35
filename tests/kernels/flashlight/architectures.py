"""Models of Transformers, tiny, random and eager, with how many softmaxes each must be accounted for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TEXT = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = TEXT | {"num_key_value_heads": 2, "pad_token_id": 0}
BATCH, LENGTH, SIDE = 2, 19, 24


@dataclass(frozen=True)
class Architecture:
    """One model: `make() -> (model, inputs)` with inputs by keyword; attentions and routers are the softmaxes that a call runs."""

    name: str
    kind: str
    head: str
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]]
    attentions: int
    routers: int = 0
    trains: bool = True

    def make(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """The model in evaluation mode."""
        import transformers

        config = transformers.AutoConfig.for_model(self.kind, attn_implementation="eager", **self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, self.head)(config)
            for parameter in model.parameters():  # larger than the usual initialisation, under which attention is almost a mean
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.1)
        return model.to(dtype).eval(), self.inputs()


def _ids(length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 99, (BATCH, length), generator=torch.Generator().manual_seed(seed))


def text() -> dict[str, torch.Tensor]:
    return {"input_ids": _ids()}


def padded(left: bool = False) -> dict[str, torch.Tensor]:
    """The second sequence has 8 tokens less, of padding before or after."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, LENGTH - 8 :] = 0
    return {"input_ids": _ids(), "attention_mask": mask.flip(1) if left else mask}


def padded_left() -> dict[str, torch.Tensor]:
    return padded(left=True)


def pairs() -> dict[str, torch.Tensor]:
    return padded() | {"decoder_input_ids": _ids(11, seed=1)}


def image() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}


def sound() -> dict[str, torch.Tensor]:
    features = torch.randn(BATCH, 16, 2 * LENGTH, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": _ids(7)}


def text_and_image() -> dict[str, torch.Tensor]:
    return padded() | image()


BART = {"vocab_size": 99, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}  # fmt: skip
CLIP_TEXT = TEXT | {"max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
CLIP_IMAGE = {k: v for k, v in TEXT.items() if k != "vocab_size"} | {"image_size": SIDE, "patch_size": 8}

ARCHITECTURES = (  # the first eight run by default: see test_transformers.py
    Architecture("llama_padded", "llama", "LlamaForCausalLM", GROUPED, padded_left, 2),
    Architecture("gemma2_softcap", "gemma2", "Gemma2ForCausalLM", GROUPED | {"head_dim": 12, "sliding_window": 5}, text, 2),
    Architecture("t5", "t5", "T5ForConditionalGeneration", {"vocab_size": 99, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2,
                 "num_heads": 4, "dropout_rate": 0.0}, pairs, 6),
    Architecture("bert", "bert", "BertForMaskedLM", TEXT, padded, 2),
    Architecture("mixtral", "mixtral", "MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, text, 2, routers=2),
    Architecture("vit", "vit", "ViTForImageClassification", CLIP_IMAGE, image, 2),
    Architecture("gpt2", "gpt2", "GPT2LMHeadModel", {"vocab_size": 99, "n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64,
                 "bos_token_id": 0, "eos_token_id": 0}, padded, 2),
    Architecture("mistral_window", "mistral", "MistralForCausalLM", GROUPED | {"sliding_window": 5}, padded, 2),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", GROUPED, padded, 2),
    Architecture("gpt_neox", "gpt_neox", "GPTNeoXForCausalLM", TEXT, padded, 2),
    Architecture("bart", "bart", "BartForConditionalGeneration", BART, pairs, 6),
    Architecture("whisper", "whisper", "WhisperForConditionalGeneration", BART | {"num_mel_bins": 16, "max_source_positions": LENGTH,
                 "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}, sound, 6),
    Architecture("clip", "clip", "CLIPModel", {"text_config": CLIP_TEXT, "vision_config": CLIP_IMAGE}, text_and_image, 4),
)  # fmt: skip
