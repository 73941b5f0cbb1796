"""The demo: problems that it writes itself, and a tiny model that knows how to answer but seldom what."""
