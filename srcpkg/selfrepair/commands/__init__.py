"""The command `selfrepair`: a module a command, or a few that belong together."""
