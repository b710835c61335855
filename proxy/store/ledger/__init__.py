"""Rows of calls, from the event loop through a journal into the database, and what they add up to."""
