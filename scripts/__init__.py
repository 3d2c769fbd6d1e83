"""What is run by hand, one verb a file."""
