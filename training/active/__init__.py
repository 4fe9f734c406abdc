"""Active learning: a potential makes the data that it lacks."""
