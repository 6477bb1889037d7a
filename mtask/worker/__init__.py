"""The worker: receives messages, runs their tasks in slots, and records what became of them."""
