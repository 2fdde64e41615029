#!/usr/bin/env python3
"""The web page and the API of glmasr:  python app.py --model demo,  then http://127.0.0.1:7860  (docs/SERVER.md)."""

import sys

from glmasr.server.main import main

if __name__ == "__main__":
    sys.exit(main())
