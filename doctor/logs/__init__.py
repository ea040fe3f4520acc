"""A server's log: read as it arrives, searched in linear time, and explained."""
