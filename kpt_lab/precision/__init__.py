"""8-bit floating point: formats, scaling, linear layers whose products run in it, a policy that decides where, and a trainer.

from kpt_lab.precision import AutoMixedPrecision, FP8Trainer

trainer = FP8Trainer(model=model, precision_policy=AutoMixedPrecision(), loss=torch.nn.functional.cross_entropy)
for batch in batches:
    loss = trainer.step(batch)
print(trainer.receipt())
"""

from kpt_lab.precision.decisions import Decision, Decisions
from kpt_lab.precision.linear import BFLOAT16, ROWWISE, ROWWISE_BF16_WEIGHT_GRADIENT, TENSORWISE, Recipe
from kpt_lab.precision.policy import AutoMixedPrecision
from kpt_lab.precision.trainer import BadStep, FP8Trainer

__all__ = [
    "BFLOAT16",
    "ROWWISE",
    "ROWWISE_BF16_WEIGHT_GRADIENT",
    "TENSORWISE",
    "AutoMixedPrecision",
    "BadStep",
    "Decision",
    "Decisions",
    "FP8Trainer",
    "Recipe",
]
