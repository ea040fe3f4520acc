"""What the software that is judged does, read from its own installed files, never imported."""
