"""Media: makes legs and joins them. Knows nothing of calls, of Meta's API or of policy."""
