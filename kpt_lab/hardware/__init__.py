"""Hardware as data: `targets` holds the devices that we know the figures of, and probes the CPU at hand."""
