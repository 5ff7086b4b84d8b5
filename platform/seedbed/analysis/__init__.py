"""Studies of single questions, beside the pipeline."""
