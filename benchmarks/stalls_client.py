"""A client that reads or writes one row after the other, and tells how long its slowest query took.

Started by stalls.py as `python -m benchmarks.stalls_client reader|writer SEED`: the address comes on standard
input, whose end ends it. Prints "ready", and at the end one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time

import psycopg

ROWS = 1_000_000
PARENTS = 1_000
# Leaves the cores some room: a client that never rests measures the scheduler.
PAUSE_SECONDS = 0.002
READ = "SELECT id, parent_id, code, note FROM items WHERE id = %s"
UPDATE = "UPDATE items SET note = note || '.' WHERE id = %s"
# As the backfill changes it: a row that comes meanwhile is right by itself, or no pass would be the last one.
INSERT = "INSERT INTO items (parent_id, code, note, score) VALUES (%s, 'new', 'new', 2000000)"


def main() -> None:
    kind, seed = sys.argv[1:]
    address = sys.stdin.readline().strip()
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    choose = random.Random(int(seed))
    queries, slowest, problem = 0, 0.0, ""
    with psycopg.connect(address, autocommit=True) as connection:
        print("ready", flush=True)
        while not stop.is_set():
            # The first rows belong to the blocker.
            number = choose.randint(100, ROWS)
            if kind == "reader":
                statement, value = READ, number
            elif queries % 5:
                statement, value = UPDATE, number
            else:
                statement, value = INSERT, choose.randint(1, PARENTS)
            began = time.perf_counter()
            try:
                connection.execute(statement.encode(), (value,))
            except psycopg.Error as error:
                problem = problem or f"{type(error).__name__}: {error}".splitlines()[0]
            slowest = max(slowest, time.perf_counter() - began)
            queries += 1
            time.sleep(PAUSE_SECONDS)
    print(json.dumps({"queries": queries, "slowest_ms": slowest * 1000, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
