"""What the workflow needs beside the science: its config, jobs, provenance and progress."""
