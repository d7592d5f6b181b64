"""Speed and memory of a step, measured side by side. Run from the repository's root; not installed."""
