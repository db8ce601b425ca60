"""A simulated instrument behind the real wire: the far side of USB, down to single photons."""
