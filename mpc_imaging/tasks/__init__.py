"""Tasks: what the parties of a session do together, each by its roles."""
