"""The ranks of a job: process group, heartbeats and watchdog, checks at the start, signals."""
