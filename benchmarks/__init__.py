"""Compare the speed of the library with its peers, in one process."""
