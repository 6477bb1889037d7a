"""Where in a genome do reads come from? See README.md."""
