"""Benches of avapd: `python -m bench --list`. Numbers live in results/*.json, README.md is rendered from them."""
