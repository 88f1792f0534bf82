"""One node: which agents are placed here, which of them have work, and their hand-over."""
