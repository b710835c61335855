"""The wire on the clients' side: one connection, from the checks of a head to its last byte."""
