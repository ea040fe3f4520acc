"""What of a model has to fit where."""
