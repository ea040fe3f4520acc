"""Repairs: planned, staged aside, swapped in by renames, journalled, taken back."""
