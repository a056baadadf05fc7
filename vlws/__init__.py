"""vlws: seven vision-language papers as notebooks that run, and the thin library they call."""

__version__ = "0.1.0"
