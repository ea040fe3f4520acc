"""A server's command line as a person has it, taken apart: `vllm serve`, the module, a unit's, a
process's, a container's. Nothing of it is run."""

from doctor.command.server import DEFAULT_SHM, MODULE, Container, ServerCommand, read_command

__all__ = ["DEFAULT_SHM", "MODULE", "Container", "ServerCommand", "read_command"]
