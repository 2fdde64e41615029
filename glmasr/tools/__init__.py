"""The commands beside the command line, and what it says and draws: reports, journals, progress, explanations."""
