"""Several processes on one socket: started, told of new settings, replaced when they die, ended together.

It knows nothing of what a worker does: that is a function, called in the new process.
"""

from proxy.supervisor.channel import Applied, Drain, End, Failed, Ready, Refused, Reload
from proxy.supervisor.loop import Configuration, NoWorkerStarts, Supervisor, Timing
from proxy.supervisor.worker import CannotServe, Worker

__all__ = [
    "Applied",
    "CannotServe",
    "Configuration",
    "Drain",
    "End",
    "Failed",
    "NoWorkerStarts",
    "Ready",
    "Refused",
    "Reload",
    "Supervisor",
    "Timing",
    "Worker",
]
