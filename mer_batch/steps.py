"""The protocol's steps by name: the moments at which a run may be cut short.

A breakpoint for tests. Where ``MER_BATCH_STEPS`` names a Unix socket, a process that comes to a
step says so there and waits for a line: whoever listens can hold it exactly here and kill it, or
another one. Without the variable a step is one look into a dictionary.
"""

from __future__ import annotations

import json
import os
import socket

VARIABLE = "MER_BATCH_STEPS"

#: What has just happened, or is about to, in the order of a run.
STEPS = {
    # Taking the output.
    "lease_to_take": "the lease is vacant and about to be taken",
    "lease_taken": "the lease is ours, and nothing else tells of the run",
    "run_marked": "the run is marked open; its configuration is not written",
    "run_open": "mark and configuration are written",
    "table_made": "a table that was not there is made",
    "fence_to_put": "earlier holders can still commit to a table",
    "fence_put": "earlier holders can no longer commit to a table",
    "lease_renewed": "the lease is prolonged, in the background",
    "lease_lost": "the lease is found to be lost",
    # Clearing up behind a run that was cut short.
    "sweep_to_begin": "a run that was cut short is found",
    "part_to_sweep": "a part that no commit names is about to be deleted",
    "parts_swept": "no part is left that no commit names",
    "night_to_sweep": "in a store: what is left of nights is looked at, and about to be deleted",
    "night_swept": "nothing is left of a night that was not published",
    "mark_forgotten": "the mark of a run that was cut short is gone",
    # Work, by a worker or, from features, by the driver.
    "block_begun": "a worker has a block of tracks to decode",
    "rescore_begun": "a block of tracks is about to be scored from features",
    "track_given": "a decoder has a track",
    "track_done": "a track's outcome is there, in a worker's memory",
    "batch_to_score": "an actor of the scoring pool has features of some tracks",
    "part_to_write": "all outcomes of a block are there, and about to be written",
    "file_to_place": "a local file is whole under a name that nobody reads",
    "part_written": "a part is written that no commit names",
    "block_done": "a block is about to be reported",
    "report_taken": "the driver has a block's report",
    # Committing.
    "rejects_to_commit": "rejects are about to be committed",
    "rejects_committed": "rejects are committed, the parts of their blocks are not",
    "parts_to_commit": "parts are about to be committed",
    "parts_committed": "parts are committed",
    # Publishing.
    "own_parts_swept": "no part is left of a block that was done twice",
    "publish_to_begin": "a night is complete, nothing of it is written",
    "marker_removed": "in a store: the night before is hidden from readers",
    "night_part_written": "a part of the night is written",
    "beside_to_clear": "in a store: what lies beside a night's parts is listed, and may be deleted",
    "marker_to_write": "all parts of the night are written, its marker is not",
    "marker_written": "the night is whole; on a disk it lies aside",
    "night_to_place": "on a disk: the night is about to take its place",
    "night_placed": "on a disk: the night is in its place, the one before lies aside",
    "night_cleared": "on a disk: the one before is gone",
    # Keeping the tables in order.
    "merged_part_written": "small parts are written anew as one, which no commit names",
    "parts_to_replace": "a merged part is about to take the place of small ones",
    "parts_replaced": "a merged part is committed, what it replaces lies there still",
    "log_summed_up": "a table's log has a checkpoint, and no entries older than it keeps",
    "unused_to_delete": "files that no late version names are listed, and about to be deleted",
    "unused_deleted": "no file is left that no late version of a table names",
    # The end.
    "traces_to_write": "log and manifest are about to be written",
    "traces_written": "log and manifest are written, the run is marked open",
    "mark_removed": "the mark is gone, the lease is ours",
    "lease_released": "the lease is given back",
}


def reach(step: str) -> None:
    """Wait for leave to go on, where somebody listens."""
    address = os.environ.get(VARIABLE)
    if address is None:
        return
    with socket.socket(socket.AF_UNIX) as listener:
        listener.connect(address)
        message = {"step": step, "about": STEPS[step], "pid": os.getpid()}
        listener.sendall(json.dumps(message).encode() + b"\n")
        listener.recv(1)
