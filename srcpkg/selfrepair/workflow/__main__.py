"""`python -m selfrepair.workflow`: the command `selfrepair` of this very Python."""

from selfrepair.workflow.command import app

app()
