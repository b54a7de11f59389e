"""What the notebooks use: measuring, checking, looking."""
