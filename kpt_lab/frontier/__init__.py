"""The frontier: devices that nobody here owns, simulated and never timed as if they were there."""
