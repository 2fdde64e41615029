"""Archives: many recordings on many machines, by Ray. docs/ARCHIVE.md says how, `main` is the command."""
