"""What is heard of it all: facts, logs, spans, metrics."""
