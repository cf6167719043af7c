"""Tables, condensed from measured files."""
