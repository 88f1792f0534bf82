"""One supervisor: which nodes live, which supervisor leads, where agents go. It knows nothing of `host`."""
