-- What lies beside a batch's own life: the parts of open batches, and batches that nobody sealed.

-- name: list_parts
SELECT part_key, jobs, created_at FROM batch_parts WHERE batch_id = $1 AND part_key > $2 ORDER BY part_key LIMIT $3;

-- name: seal_forgotten
-- Open batches to which nothing was added for so many days: sealed, they finish and are pruned like all others. Whoever
-- appends at this moment holds the row, or finds it sealed.
UPDATE batches SET state = 'running' WHERE id = ANY(ARRAY(
    SELECT id FROM batches AS b
    WHERE state = 'open' AND created_at < coalesce($3, now()) - $1::int * interval '1 day'
    AND NOT EXISTS (
        SELECT 1 FROM batch_parts
        WHERE batch_id = b.id AND created_at >= coalesce($3, now()) - $1::int * interval '1 day')
    LIMIT $2 FOR UPDATE SKIP LOCKED));
