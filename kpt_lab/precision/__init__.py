"""Number formats below 16 bits: exact rounding on any device."""
