"""`python -m selfrepair`: the command `selfrepair` of this very Python."""

from selfrepair.workflow.command import app

app()
