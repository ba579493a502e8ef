"""What a model is asked to do: each task's prompt format and its evaluation, side by side."""
