"""All idioms of the corpus: attention as researchers write it, each to be matched and right.

An `Idiom` (see corpus.py) has a name, `make(seed, dtype) -> (fn, args)`, its origin, whether captured tensors have gradients and
how many softmaxes it runs. `by_name["causal_tril"].make(0, torch.float32)` gives a function or a module in eval mode and its inputs.
"""

from idioms_biases import biases
from idioms_forms import forms
from idioms_heads import heads
from idioms_masks import masks
from idioms_transformers import transformers

idioms = (*forms, *masks, *biases, *heads, *transformers)
by_name = {idiom.name: idiom for idiom in idioms}
assert len(by_name) == len(idioms), "two idioms have the same name"
