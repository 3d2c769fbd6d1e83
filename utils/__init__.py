"""What several programs share, one noun a file."""
