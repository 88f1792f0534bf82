"""What the backends that speak to a model's HTTP API have in common: frames, bodies, failures, clients. None imports an SDK."""
