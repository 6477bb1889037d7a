"""Which topic is a paper about? See README.md."""
