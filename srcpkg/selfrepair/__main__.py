"""`python -m selfrepair`: the command `selfrepair` of this very Python."""

from selfrepair.commands.app import app

app(prog_name="selfrepair")
