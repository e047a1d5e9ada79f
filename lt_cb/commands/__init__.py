"""What `lt-cb` does, one file a command."""
