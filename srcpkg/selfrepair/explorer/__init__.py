"""The explorer: one page that shows every head and token of a run, in its text."""
