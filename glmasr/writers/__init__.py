"""Transcript -> subtitles, tables and JSON; and the files that they go into."""
