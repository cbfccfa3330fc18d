"""avapd: the definition server of the AVAP platform."""

__version__ = "0.1.0"
