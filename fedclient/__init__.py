"""The Motley client daemon: checks in, trains in a worker process, sends updates."""
