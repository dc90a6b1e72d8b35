"""A transformer as a graph of plain steps: torch's composite modules opened, attention spelled out, then traced by torch.fx.

Opening keeps the parameters and the arithmetic; the conversion compares the graph with the model on data before it trusts it.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kpt_lab.core import Unsupported


def inverse_root(size: int) -> float:
    """1 / sqrt(size), as a step of its own where the size is known only when the graph runs."""
    return 1 / math.sqrt(size)


def causal_bias(rows: int, columns: int, device: Any) -> Tensor:
    """(rows, columns) float64: 0 where a query may look, -inf above the diagonal."""
    return torch.full((rows, columns), -math.inf, dtype=torch.float64, device=device).triu(1)


def additive_mask(mask: Tensor, allowed: bool) -> Tensor:
    """A mask to be added to scores: a Boolean one, whose value `allowed` lets through, as 0 and -inf; another one as it is."""
    if mask.dtype != torch.bool:
        return mask
    keep = mask if allowed else ~mask
    return torch.zeros(mask.shape, dtype=torch.float64, device=mask.device).masked_fill(~keep, -math.inf)


_NOT_IN_PLACE: dict[Any, Any] = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}

fx.wrap("inverse_root")
fx.wrap("causal_bias")
fx.wrap("additive_mask")


class Attention(nn.Module):
    """nn.MultiheadAttention as three linear layers, two products and a softmax; the same call and the same tuple."""

    def __init__(self, original: nn.MultiheadAttention, name: str) -> None:
        super().__init__()
        if original.bias_k is not None or original.bias_v is not None or original.add_zero_attn:
            raise Unsupported(f"{name} (MultiheadAttention) can't be converted: it has add_bias_kv or add_zero_attn")
        self.name, self.heads, self.batch_first = name, original.num_heads, original.batch_first
        width = original.embed_dim
        if original.in_proj_weight is not None:
            weights = list(original.in_proj_weight.chunk(3))
        else:
            weights = [original.q_proj_weight, original.k_proj_weight, original.v_proj_weight]
        biases = [None] * 3 if original.in_proj_bias is None else list(original.in_proj_bias.chunk(3))
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out, self.scale = _linear(original.out_proj.weight, original.out_proj.bias), inverse_root(width // self.heads)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """Attended values and, where asked for, the weights; inputs are batched, as the module's batch_first says."""
        if key_padding_mask is not None:
            raise Unsupported(f"{self.name} (MultiheadAttention) can't be converted: it is called with key_padding_mask")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = (q @ k.transpose(-2, -1)) * self.scale
        if attn_mask is not None:
            scores = scores + additive_mask(attn_mask, False)
        weights = F.softmax(scores, -1)
        mixed = self.out((weights @ v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            mixed = mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        return mixed, weights.mean(1) if average_attn_weights else weights


class EncoderBlock(nn.Module):
    """nn.TransformerEncoderLayer in evaluation, in steps."""

    def __init__(self, original: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.attention, self.norm_first = original.self_attn, original.norm_first
        self.norm1, self.norm2 = original.norm1, original.norm2
        self.linear1, self.linear2, self.activation = original.linear1, original.linear2, original.activation

    def forward(self, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False) -> Any:
        """The layer's output for a batched src."""
        if self.norm_first:
            x = src + self._attend(self.norm1(src), src_mask, src_key_padding_mask)
            return x + self.linear2(self.activation(self.linear1(self.norm2(x))))
        x = self.norm1(src + self._attend(src, src_mask, src_key_padding_mask))
        return self.norm2(x + self.linear2(self.activation(self.linear1(x))))

    def _attend(self, x: Any, mask: Any, padding: Any) -> Any:
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False, attn_mask=mask)[0]


class EncoderStack(nn.Module):
    """nn.TransformerEncoder: its layers in turn, then its norm."""

    def __init__(self, original: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = original.layers, original.norm

    def forward(self, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None) -> Any:
        """The stack's output for a batched src."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _opened(module: nn.Module, name: str = "") -> nn.Module:
    """The module with torch's composite ones below it, and itself, replaced in place."""
    for key, child in list(module.named_children()):
        setattr(module, key, _opened(child, f"{name}.{key}".lstrip(".")))
    if type(module) is nn.MultiheadAttention:
        return Attention(module, name or "the model")
    if type(module) is nn.TransformerEncoderLayer:
        return EncoderBlock(module)
    if type(module) is nn.TransformerEncoder:
        return EncoderStack(module)
    if getattr(module, "inplace", False) is True:
        module.inplace = False  # type: ignore[assignment]
    return module


def traced(model: nn.Module) -> fx.GraphModule:
    """The model's own copy in evaluation mode and float64 as a graph of plain steps; Unsupported where it has no fixed structure."""
    copied = _opened(copy.deepcopy(model).eval().requires_grad_(False).to(torch.float64))
    parameters = inspect.signature(copied.forward).parameters.values()
    fixed = {p.name: p.default for p in parameters if p.default is not p.empty}
    try:
        module = fx.symbolic_trace(copied, concrete_args=fixed)
    except (fx.proxy.TraceError, TypeError) as error:
        raise Unsupported(f"standard_transformer has no fixed structure that can be converted: {error}") from error
    for node in list(module.graph.nodes):
        if node.target is F.scaled_dot_product_attention:
            _spell_out(module.graph, node)
            continue
        # membranes are kept in float64 and written once: no step casts its result or works in place
        node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "_stacklevel")}
        if node.target in (F.softmax, torch.softmax, torch.mean, "softmax", "mean"):
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        if node.op == "call_function":
            node.target = _NOT_IN_PLACE.get(node.target, node.target)
    _drop_fixed(module.graph, set(fixed))
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _drop_fixed(graph: fx.Graph, fixed: set[str]) -> None:
    """Remove the placeholders of arguments that were fixed to their defaults, with the checks that fx adds for them."""
    for node in reversed(graph.nodes):
        below = all(not user.users and user.op == "call_function" for user in node.users)
        if "has been specialized" in str(node.args) or getattr(node.target, "__name__", "") == "_assert_is_none":
            graph.erase_node(node)
        elif node.op == "placeholder" and node.target.rpartition("_")[0] in fixed and below:
            for user in list(node.users):
                graph.erase_node(user)
            graph.erase_node(node)


def _spell_out(graph: fx.Graph, node: fx.Node) -> None:
    """Replace a call of scaled_dot_product_attention by its two products and the softmax between them."""
    given = inspect.signature(_sdpa).bind(*node.args, **node.kwargs)
    with graph.inserting_before(node):
        proxied = fx.node.map_arg((given.args, given.kwargs), fx.Proxy)  # type: ignore[arg-type]
        out = _sdpa(*proxied[0], **proxied[1], name=node.name)
    node.replace_all_uses_with(out.node)
    graph.erase_node(node)


def _sdpa(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
    *,
    name: str = "",
) -> Any:
    if dropout_p != 0.0 or enable_gqa or not isinstance(is_causal, bool):
        raise Unsupported(
            f"{name} (scaled_dot_product_attention) can't be converted: dropout_p must be 0, enable_gqa False and is_causal fixed"
        )
    factor = _call(inverse_root, query.size(-1)) if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * factor
    if is_causal:
        scores = scores + _call(causal_bias, query.size(-2), key.size(-2), query.device)
    if attn_mask is not None:
        scores = scores + _call(additive_mask, attn_mask, True)
    return F.softmax(scores, -1) @ value


def _call(function: Any, *args: Any) -> Any:
    proxy = next(arg for arg in args if isinstance(arg, fx.Proxy))
    return proxy.tracer.create_proxy("call_function", function, args, {})
