"""The proof of the quotas: a program apart, which holds real proxies against what a simulated provider was asked.

plan.py says what is asked and what may be, configuration.py what the proxies are told, cluster.py starts them,
clients.py asks, audit.py asks the counters afterwards, recount.py compares; run.py is the order of it all. Only the
command starts it, and nothing of it trusts the code that it is about: prices are multiplied here once more.
"""
