"""Pure functions from a Report to what is shown."""
