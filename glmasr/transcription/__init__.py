"""From windows to a text: VAD, chunks, languages, retries, and speech that no text covers."""
