"""What some figures share beside their looks, a module a subject; each figure imports those that it needs."""
