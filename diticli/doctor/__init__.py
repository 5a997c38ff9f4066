"""`diti doctor`: what is installed, what the hardware can do, and what this package chooses to run on it."""
