"""The eager attentions of Transformers' architectures, tiny and random; the weights that they return are dropped, as models do."""

import functools
import importlib
from typing import Any

import torch
from corpus import Draw, Idiom
from torch import nn

BATCH, LENGTH, WIDTH = 2, 19, 48


class Attention(nn.Module):
    """An architecture's attention, its weights dropped."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], **constants: Any) -> None:
        super().__init__()
        self.module, self.names, self.constants = module, names, constants

    def forward(self, *args: Any) -> torch.Tensor:
        output = self.module(**dict(zip(self.names, args, strict=True)), **self.constants)
        return output[0] if isinstance(output, tuple) else output


# ---- inputs


def hidden(draw: Draw) -> torch.Tensor:
    return draw(BATCH, LENGTH, WIDTH)


def additive(draw: Draw, window: int = LENGTH) -> torch.Tensor:
    """Causal within a window, the second sequence padded on the left, as Transformers' masks are for eager attention."""
    i = torch.arange(LENGTH)
    seen = (i[:, None] >= i) & (i[:, None] - i < window)
    padded = torch.tensor([0, 4])[:, None, None, None] <= i
    return torch.where(seen & padded | (i[:, None] == i), 0.0, torch.finfo(draw.dtype).min).to(draw.dtype)


def padding(draw: Draw) -> torch.Tensor:
    """Keys after the length of the second sequence, for every query."""
    seen = torch.arange(LENGTH) < torch.tensor([LENGTH, 11])[:, None, None, None]
    return torch.where(seen, 0.0, torch.finfo(draw.dtype).min).to(draw.dtype).expand(-1, 1, LENGTH, -1)


def turns(draw: Draw, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary embeddings."""
    angle = torch.outer(torch.arange(LENGTH).double(), 1e4 ** (-torch.arange(0, width, 2).double() / width))
    angle = torch.cat((angle, angle), -1)[None]
    return angle.cos().to(draw.dtype), angle.sin().to(draw.dtype)


def two_dimensional(draw: Draw) -> torch.Tensor:
    """A bias of ALiBi as BLOOM and Falcon build it, [b h, 1, k]."""
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    return (slopes[:, None] * torch.arange(LENGTH)).repeat(BATCH, 1)[:, None].to(draw.dtype)


# ---- architectures

ROTARY = ("hidden_states", "position_embeddings", "attention_mask")
MASKED = ("hidden_states", "attention_mask")
LLAMA = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
FULL = {"hidden_size": WIDTH, "num_attention_heads": 4}


def rotary(draw: Draw) -> tuple:
    return hidden(draw), turns(draw), additive(draw)


def windowed(draw: Draw) -> tuple:
    return hidden(draw), turns(draw), additive(draw, 5)


def padded(draw: Draw) -> tuple:
    return hidden(draw), padding(draw)


def causal(draw: Draw) -> tuple:
    return hidden(draw), additive(draw)


def _made(kind: str, name: str, settings: dict, names: tuple, arguments: Any, constants: dict, seed: int, dtype: torch.dtype):
    from transformers import AutoConfig

    folder = kind.removesuffix("_vision_model")
    family = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    config = AutoConfig.for_model(kind, attn_implementation="eager", **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = constants.get("build", lambda cls, config: cls(config, layer_idx=0))(getattr(family, name), config)
        for parameter in module.parameters():  # some are only made by from_pretrained's initialisation
            nn.init.normal_(parameter, std=0.2)
    module = Attention(module, names, **{k: v for k, v in constants.items() if k != "build"}).to(dtype).eval()
    return module, arguments(Draw(seed, dtype))


def _architecture(
    kind: str, name: str, settings: dict, names: tuple, arguments: Any, *, case: str = "", softmaxes: int = 1, **constants: Any
) -> Idiom:
    make = functools.partial(_made, kind, name, settings, names, arguments, constants)
    return Idiom(f"transformers_{kind}{case}", make, f"transformers.models.{kind}.{name}", True, softmaxes)


def from_config(cls: type, config: Any) -> nn.Module:
    return cls(config)


def of_encoder(cls: type, config: Any) -> nn.Module:
    return cls(embed_dim=WIDTH, num_heads=4, config=config)


transformers = (
    _architecture("llama", "LlamaAttention", LLAMA, ROTARY, rotary),
    _architecture("mistral", "MistralAttention", LLAMA, ROTARY, windowed),
    _architecture("mixtral", "MixtralAttention", LLAMA, ROTARY, rotary),
    _architecture("qwen2", "Qwen2Attention", LLAMA, ROTARY, rotary),
    _architecture("qwen3", "Qwen3Attention", LLAMA, ROTARY, rotary),
    _architecture("gemma2", "Gemma2Attention", LLAMA | {"query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0}, ROTARY, windowed),
    _architecture("olmo2", "Olmo2Attention", LLAMA, ROTARY, rotary),
    _architecture("cohere", "CohereAttention", LLAMA, ROTARY, rotary),
    _architecture("diffllama", "DiffLlamaAttention", LLAMA, ROTARY, rotary, softmaxes=2),
    _architecture("phi", "PhiAttention", LLAMA | {"partial_rotary_factor": 1.0}, ROTARY, rotary),
    _architecture("modernbert", "ModernBertAttention", FULL, ROTARY, lambda draw: (hidden(draw), turns(draw), padding(draw))),
    _architecture("gpt_neox", "GPTNeoXAttention", FULL, ROTARY, rotary),
    _architecture("gpt2", "GPT2Attention", {"n_embd": WIDTH, "n_head": 4}, MASKED, causal),
    _architecture("gpt_bigcode", "GPTBigCodeAttention", {"n_embd": WIDTH, "n_head": 4}, MASKED, causal),
    _architecture("opt", "OPTAttention", FULL | {"word_embed_proj_dim": WIDTH, "ffn_dim": 64}, MASKED, causal),
    _architecture("mpt", "MptAttention", {"d_model": WIDTH, "n_heads": 4}, ("hidden_states", "position_bias", "attention_mask"),
                  lambda draw: (hidden(draw), two_dimensional(draw)[:4], additive(draw) < -1)),
    _architecture("bloom", "BloomAttention", {"hidden_size": WIDTH, "n_head": 4}, ("hidden_states", "residual", "alibi", "attention_mask"),
                  lambda draw: (hidden(draw), hidden(draw), two_dimensional(draw), additive(draw))),
    _architecture("falcon", "FalconAttention", FULL | {"new_decoder_architecture": False, "alibi": True},
                  ("hidden_states", "alibi", "attention_mask"),
                  lambda draw: (hidden(draw), two_dimensional(draw), additive(draw)), case="_alibi"),
    _architecture("falcon", "FalconAttention", FULL | {"new_decoder_architecture": True, "num_kv_heads": 2},
                  ("hidden_states", "alibi", "attention_mask", "position_embeddings"),
                  lambda draw: (hidden(draw), None, additive(draw), turns(draw)), case="_grouped"),
    _architecture("bert", "BertSelfAttention", FULL, MASKED, padded),
    _architecture("distilbert", "DistilBertSelfAttention", {"dim": WIDTH, "n_heads": 4}, MASKED, padded, build=from_config),
    _architecture("electra", "ElectraSelfAttention", FULL | {"embedding_size": WIDTH}, MASKED, padded),
    _architecture("esm", "EsmSelfAttention", FULL | {"position_embedding_type": "absolute", "vocab_size": 33, "pad_token_id": 1}, MASKED, padded),
    _architecture("vit", "ViTAttention", FULL, ("hidden_states",), lambda draw: (hidden(draw),), build=from_config),
    _architecture("clip_vision_model", "CLIPAttention", FULL, MASKED, causal, build=from_config),
    _architecture("whisper", "WhisperAttention", {"d_model": WIDTH, "encoder_attention_heads": 4}, ("hidden_states",),
                  lambda draw: (hidden(draw),), build=of_encoder),
    _architecture("bart", "BartAttention", {"d_model": WIDTH}, ("hidden_states", "key_value_states", "attention_mask"),
                  lambda draw: (hidden(draw), draw(BATCH, 7, WIDTH), padding(draw)[..., :7]), build=of_encoder),
    _architecture("t5", "T5Attention", {"d_model": WIDTH, "d_kv": 12, "num_heads": 4}, ("hidden_states", "mask"), padded,
                  build=lambda cls, config: cls(config, has_relative_attention_bias=True, layer_idx=0)),
    _architecture("swin", "SwinAttention", {"window_size": 3}, MASKED,
                  lambda draw: (draw(8, 9, WIDTH), torch.where(draw.boolean(4, 9, 9), 0.0, -100.0).to(draw.dtype)),
                  build=lambda cls, config: cls(config, WIDTH, 4, 3)),
)  # fmt: skip
