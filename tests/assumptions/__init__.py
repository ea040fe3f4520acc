"""What doctor/consumers assumes, checked against the wheels that an index has of a version."""
