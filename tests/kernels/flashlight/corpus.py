"""How an idiom of the corpus is written down, and its float64 oracle."""

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

ALL = os.environ.get("KPT_LAB_FLASHLIGHT_ALL", "") not in (
    "",
    "0",
)  # whatever else could be tested too, which takes about a minute more
LOW = {torch.float32, torch.bfloat16, torch.float16}


def some(items: Iterable[Any], often: int) -> list[Any]:
    """One in so many of the items, the first among them; all where KPT_LAB_FLASHLIGHT_ALL=1."""
    return list(items) if ALL else list(items)[::often]


class Draw:
    """Seeded random tensors of one dtype on the default device, drawn on the CPU: `draw(2, 3)` is normal, the rest are named."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device="cpu").to(torch.get_default_device(), self.dtype)

    def boolean(self, *shape: int, likely: float = 0.6) -> torch.Tensor:
        """True with that probability, and always in the first place of the last dimension: no row is empty."""
        chosen = (torch.rand(shape, generator=self.generator, device="cpu") < likely).to(torch.get_default_device())
        chosen[..., 0] = True
        return chosen

    def integers(self, below: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, below)."""
        return torch.randint(below, shape, generator=self.generator, device="cpu").to(torch.get_default_device())


@dataclass(frozen=True)
class Idiom:
    """One way to write attention: `make(seed, dtype) -> (fn, args)`; the same seed gives the same numbers.

    origin: the paper, library or architecture whose habit it is.   gradients: whether captured tensors have gradients.
    softmaxes: how many softmaxes a run has.   phrase: of a near miss, what the reason of its refusal must say.
    """

    name: str
    make: Callable[[int, torch.dtype], tuple[Callable[..., torch.Tensor], tuple[Any, ...]]]
    origin: str
    gradients: bool = False
    softmaxes: int = 1
    phrase: str = ""


def _made(fn: Any, arguments: Callable[[Draw], tuple], seed: int, dtype: torch.dtype) -> tuple[Callable, tuple]:
    if isinstance(fn, type):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with torch.device("cpu"):  # the same numbers everywhere
                fn = fn()
            fn = fn.to(torch.get_default_device(), dtype).eval()
    return fn, arguments(Draw(seed, dtype))


class Collection:
    """A list of idioms that grows by decoration of functions, or of nn.Module classes that take no argument."""

    def __init__(self) -> None:
        self._found: dict[str, Idiom] = {}

    def __call__(self, origin: str, arguments: Callable[[Draw], tuple], **fields: Any) -> Callable:
        def add(fn: Any) -> Any:
            name = fields.pop("name", fn.__name__)
            assert name not in self._found, f"two idioms are named {name}"
            self._found[name] = Idiom(name, functools.partial(_made, fn, arguments), origin, **fields)
            return fn

        return add

    def __iter__(self) -> Iterator[Idiom]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)


def qkv(batch: int = 2, heads: int = 3, queries: int = 19, keys: int = 0, width: int = 16, values: int = 0) -> Callable:
    """Makes query, key and value [batch, heads, length, width]; keys and values default to queries and width."""
    keys, values = keys or queries, values or width
    return lambda draw: (
        draw(batch, heads, queries, width), draw(batch, heads, keys, width), draw(batch, heads, keys, values)
    )  # fmt: skip


def blhd(batch: int = 2, heads: int = 3, queries: int = 19, keys: int = 0, width: int = 16) -> Callable:
    """Makes query, key and value [batch, length, heads, width]."""
    keys = keys or queries
    return lambda draw: (draw(batch, queries, heads, width), *(draw(batch, keys, heads, width) for _ in "kv"))


class Doubled(TorchFunctionMode):
    """Within it whatever asks for a lower floating dtype gets float64, so that an upcast to float32 does not round."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in ("float", "half", "bfloat16") and isinstance(args[0], torch.Tensor):
            return args[0].double()
        args, kwargs = pytree.tree_map_only(torch.dtype, lambda t: torch.float64 if t in LOW else t, (args, kwargs or {}))
        return func(*args, **kwargs)


def doubled(fn: Callable, args: tuple) -> tuple[Callable, tuple]:
    """The callable and its arguments with the same numbers in float64."""
    fn = copy.deepcopy(fn).double() if isinstance(fn, nn.Module) else fn
    args = pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, args)
    return fn, args


def oracle(fn: Callable, args: tuple) -> torch.Tensor:
    """What `fn(*args)` gives in float64 throughout."""
    fn, args = doubled(fn, args)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Doubled(), torch.no_grad():
            return fn(*args)
    finally:
        torch.set_default_dtype(before)
