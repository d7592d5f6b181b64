"""Tables of results: of one run, of several runs side by side, and of the paper."""
