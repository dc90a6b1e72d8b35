"""FlashLight: attention written plainly in PyTorch, understood, and lowered to the best kernel there is."""
