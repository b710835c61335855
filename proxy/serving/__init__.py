"""A running process: what a start decides, the socket, signals, reloads, several workers."""
