"""Fetches a page."""

import urllib.request

urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
