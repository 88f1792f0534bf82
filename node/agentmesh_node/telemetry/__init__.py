"""Facts, logs, spans and metrics."""
