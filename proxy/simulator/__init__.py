"""A Mistral API to be had offline: for trying the proxy without a key, and as the upstream of its tests.

It is a program of its own: `server.run` serves it, `server.start` does so inside a running event loop. What it refuses,
and how it answers, is taken from the vendor's description and from recorded traffic; what it says is made up. faults.py
has the vocabulary with which tests make it misbehave.
"""
