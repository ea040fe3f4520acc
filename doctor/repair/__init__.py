"""Fixes: planned, staged aside, swapped in by renames, journalled, undone."""
