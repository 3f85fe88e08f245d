"""Speed, side by side: the library against peers that pip installs, in one process."""
