"""The table's statements; `{s}` stands for the schema. Those of results that are written are in `rows`."""

from __future__ import annotations

from mtask_postgres.queue import CLOCK

_BAG = "SELECT body, state, generation, total, sent, digest FROM {s}.bag"

CREATE_BAG = """
    INSERT INTO {s}.bag (name, created_at, state, generation, digest, total, sent, body)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %b) ON CONFLICT (name) DO NOTHING
"""
BAG = f"{_BAG} WHERE name = %s"
BAGS = f"{_BAG} ORDER BY created_at, id"
BAG_ID = "SELECT id FROM {s}.bag WHERE name = %s"
UPDATE_BAG = """
    UPDATE {s}.bag SET digest = coalesce(%s, digest),
        state = CASE WHEN state = 'cancelled' AND %s::text = 'sealed' THEN state ELSE coalesce(%s, state) END,
        total = greatest(total, %s::bigint), sent = greatest(sent, %s::bigint),
        generation = greatest(generation, %s::bigint)
    WHERE name = %s
"""
COUNTS = """
    SELECT total, coalesce(sum(done), 0)::bigint, coalesce(sum(failed), 0)::bigint, coalesce(sum(expired), 0)::bigint
    FROM {s}.bag LEFT JOIN {s}.tally ON tally.bag = bag.id WHERE name = %s GROUP BY bag.id
"""

PUT_BLOCKS = """
    INSERT INTO {s}.block (key, first, count, next, lane, rows)
    SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[], %b::text[], %b::bytea[])
        AS new(key, first, count, next, lane, rows)
    ORDER BY key ON CONFLICT (key) DO NOTHING
"""
BLOCK = "SELECT rows, first, count, lane, next FROM {s}.block WHERE key = %s"
BLOCKS = """
    SELECT rows, key, first, count, lane, next FROM {s}.block WHERE key BETWEEN %s AND %s ORDER BY key LIMIT %s
"""

RECORDED = "SELECT key FROM {s}.result WHERE key = ANY(%b::bigint[])"
RETRACT = """
    WITH chosen AS MATERIALIZED (
        SELECT key FROM {s}.result WHERE key = ANY(%b::bigint[]) AND state > 0 ORDER BY key FOR UPDATE
    )
    DELETE FROM {s}.result USING chosen WHERE result.key = chosen.key
    RETURNING result.key, result.state, result.body
"""
KEEP = """
    INSERT INTO {s}.attempt (key, attempt, body)
    SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::bytea[])
"""
ATTEMPTS = """
    SELECT body, key, attempt, id FROM {s}.attempt
    WHERE (key, attempt, id) > (%s, %s, %s) AND key <= %s ORDER BY key, attempt, id LIMIT %s
"""

PUT_LANES = f"""
    INSERT INTO {{s}}.lane (name, used_at, body)
    SELECT name, {CLOCK}, body FROM unnest(%b::text[], %b::bytea[]) AS new(name, body) ORDER BY name
    ON CONFLICT (name) DO UPDATE SET used_at = excluded.used_at, body = excluded.body
"""
LANES = f"SELECT body, {CLOCK} - used_at FROM {{s}}.lane"
REMOVE_LANE = f"DELETE FROM {{s}}.lane WHERE name = %s AND used_at <= {CLOCK} - %s"

SHARED = "SELECT value, version FROM {s}.document WHERE key = %s"
SWAP_NEW = "INSERT INTO {s}.document VALUES (%s, 1, %b) ON CONFLICT (key) DO NOTHING"
SWAP = "UPDATE {s}.document SET value = %b, version = version + 1 WHERE key = %s AND version = %s"

BEAT = f"""
    INSERT INTO {{s}}.worker VALUES (%s, %s, {CLOCK}, %b)
    ON CONFLICT (worker) DO UPDATE SET
        started_at = excluded.started_at, beat_at = excluded.beat_at, body = excluded.body
"""
FORGET_WORKERS = f"""
    DELETE FROM {{s}}.worker WHERE worker = ANY(ARRAY(
        SELECT worker FROM {{s}}.worker WHERE beat_at < {CLOCK} - %s FOR UPDATE SKIP LOCKED))
"""
WORKERS = f"SELECT body, beat_at FROM {{s}}.worker WHERE beat_at >= {CLOCK} - %s ORDER BY started_at, worker"

SET_ASIDE = """
    INSERT INTO {s}.dead (about, body)
    SELECT about, body FROM unnest(%b::bytea[], %b::bytea[]) WITH ORDINALITY AS new(about, body, place) ORDER BY place
"""
DEAD = "SELECT body, id, about FROM {s}.dead WHERE id BETWEEN %s AND %s ORDER BY id LIMIT %s"
