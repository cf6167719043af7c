"""Self-contained folders of a model or a corpus: the only steps of the workflow that may use the network."""
