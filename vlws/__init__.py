"""vlws: seven vision-language papers as notebooks that run, and the thin library they call."""

import warnings

__version__ = "0.1.0"

# tqdm misses a progress bar that nobody asked for, and puts the path of a file into the notebook's output
warnings.filterwarnings("ignore", message="IProgress not found")
