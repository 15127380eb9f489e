"""What `scripts/bench` is made of: measuring, the tools that are compared, the data, and a file for each mode."""
