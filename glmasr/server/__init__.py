"""The server: a web page, and an API like OpenAI's, in front of a process that owns the model."""
