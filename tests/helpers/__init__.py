"""What several tests make and use. A test module imports from here, never from another test module."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
