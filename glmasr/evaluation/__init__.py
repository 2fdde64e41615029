"""How many errors a model makes. docs/EVAL.md says what is counted, `main` is the command."""
