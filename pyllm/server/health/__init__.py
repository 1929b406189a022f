"""Whether the server is there and takes requests, and its numbers."""
