"""What can be told of turns: contexts, spans, and who talks to whom (docs/design/035-spans-are-told-by-records.md)."""
