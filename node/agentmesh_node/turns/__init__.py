"""One turn of user code: callbacks, the prompt task, steps, budget."""
