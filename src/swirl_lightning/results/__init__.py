"""Tables of results: a run's own, several runs' side by side, and the paper's."""
