"""Tables, condensed from measured files: every mean, slope and correlation with its bootstrap interval over prompts."""
