"""How fast sampling is, measured in one run against a plain loop: `python -m benchmarks`."""
