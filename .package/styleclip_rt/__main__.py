"""`python -m styleclip_rt`: the same as the console script `styleclip-rt`."""

from __future__ import annotations

from .runtime.cli import main

if __name__ == "__main__":
    main()
