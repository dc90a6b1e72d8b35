"""Number formats of 8 bits on any device: exact rounding (`formats`) and dynamic scales (`scaling`)."""
