"""The studies of the literature, again: see examples/arxiv/experiment.py."""
