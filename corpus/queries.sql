-- The corpus' statements, in the order of a document's life: collections, documents, editions and chunks,
-- generations and segments, search, deletion and purge, audit; last the search role's registry.

-- name: insert_collection
-- A collection exists from the first document or embedding that names it. DO NOTHING, so that an existing one
-- is not locked by every page that is put into it.
INSERT INTO collections (tenant_id, name) VALUES ($1, $2)
ON CONFLICT (tenant_id, name) WHERE deleted_at IS NULL DO NOTHING
RETURNING id;

-- name: find_collection
SELECT id FROM collections WHERE tenant_id = $1 AND name = $2 AND deleted_at IS NULL;

-- name: list_collections
-- Counts what a search can find: documents that are not deleted, chunks of their live editions.
SELECT c.id, c.name, c.generation, c.model_name, c.dimensions, c.created_at, n.documents, n.chunks
FROM collections c
CROSS JOIN LATERAL (
    SELECT count(*) AS documents, coalesce(sum(e.chunks), 0) AS chunks
    FROM documents d
    LEFT JOIN editions e ON e.document_id = d.id AND e.born_gen IS NOT NULL AND e.died_gen IS NULL
    WHERE d.collection_id = c.id AND d.deleted_at IS NULL
) n
WHERE c.tenant_id = $1 AND c.deleted_at IS NULL AND ($2::text IS NULL OR c.name > $2)
ORDER BY c.name LIMIT $3;

-- name: bind_model
-- The first embedding binds the collection to its model; the row is written once, then only read.
UPDATE collections SET model_name = $2, model_digest = $3, dimensions = $4
WHERE id = $1 AND model_digest IS NULL
RETURNING name;

-- name: bound_model
SELECT name, model_name, model_digest, dimensions FROM collections WHERE id = $1;

-- name: lock_document
-- Makes the document, or locks it against a second writer of the same page until the caller's commit.
-- `version` 0 in the answer means: made just now.
INSERT INTO documents (
    id, tenant_id, collection_id, key, url, title, tags, etag, last_modified, page_hash, links)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (collection_id, key) WHERE deleted_at IS NULL DO UPDATE
SET url = coalesce(excluded.url, documents.url), title = coalesce(excluded.title, documents.title),
    tags = CASE WHEN excluded.tags = '{}' THEN documents.tags ELSE excluded.tags END,
    etag = excluded.etag, last_modified = excluded.last_modified, page_hash = excluded.page_hash,
    links = excluded.links, fetched_at = now()
RETURNING id, version;

-- name: current_hash
SELECT t.hash FROM versions v JOIN contents t ON t.id = v.content_id WHERE v.document_id = $1 AND v.number = $2;

-- name: keep_content
-- Touching the row makes a concurrent purge, which looks at its age, leave it alone.
INSERT INTO contents (tenant_id, hash, text, chars) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, hash) DO UPDATE SET touched_at = now()
RETURNING id;

-- name: add_version
WITH moved AS (
    UPDATE documents SET version = $2, changed_at = now() WHERE id = $1
)
INSERT INTO versions (document_id, number, content_id, title) VALUES ($1, $2, $3, $4);

-- name: needs_embedding
-- Whether the current version still waits for its vectors or for its generation.
SELECT NOT EXISTS (
    SELECT FROM editions e
    WHERE e.document_id = d.id AND e.version = d.version AND e.born_gen IS NOT NULL AND e.died_gen IS NULL)
FROM documents d WHERE d.id = $1;

-- name: validators
SELECT d.key, d.id, d.etag, d.last_modified, d.page_hash, d.links FROM documents d JOIN collections c ON c.id = d.collection_id
WHERE c.tenant_id = $1 AND c.name = $2 AND c.deleted_at IS NULL AND d.key = ANY($3::text[])
  AND d.deleted_at IS NULL AND d.version > 0;

-- name: touch_document
-- The source answered "not modified": only the validators and the time of looking change.
UPDATE documents SET fetched_at = now(), etag = coalesce($2, etag), last_modified = coalesce($3, last_modified),
    page_hash = coalesce($4, page_hash), links = coalesce($5, links)
WHERE id = $1 AND deleted_at IS NULL
RETURNING version;

-- name: list_documents
-- Newest id last; the cursor is the id of the last one seen.
SELECT d.id, c.name AS collection, d.key, d.url, d.title, d.tags, d.version, d.created_at, d.changed_at,
       d.fetched_at, e.version AS indexed_version, coalesce(e.chunks, 0) AS chunks, coalesce(t.chars, 0) AS chars
FROM documents d
JOIN collections c ON c.id = d.collection_id AND c.deleted_at IS NULL
LEFT JOIN versions v ON v.document_id = d.id AND v.number = d.version
LEFT JOIN contents t ON t.id = v.content_id
LEFT JOIN editions e ON e.document_id = d.id AND e.born_gen IS NOT NULL AND e.died_gen IS NULL
WHERE d.tenant_id = $1 AND d.deleted_at IS NULL
  AND ($2::text IS NULL OR c.name = $2) AND ($3::text IS NULL OR d.tags @> ARRAY[$3])
  AND ($4::text IS NULL OR d.url = $4) AND ($5::uuid IS NULL OR d.id > $5)
ORDER BY d.id LIMIT $6;

-- name: get_document
SELECT d.id, c.name AS collection, d.key, d.url, d.title, d.tags, d.version, d.created_at, d.changed_at,
       d.fetched_at, e.version AS indexed_version, coalesce(e.chunks, 0) AS chunks, coalesce(t.chars, 0) AS chars
FROM documents d
JOIN collections c ON c.id = d.collection_id AND c.deleted_at IS NULL
LEFT JOIN versions v ON v.document_id = d.id AND v.number = d.version
LEFT JOIN contents t ON t.id = v.content_id
LEFT JOIN editions e ON e.document_id = d.id AND e.born_gen IS NOT NULL AND e.died_gen IS NULL
WHERE d.tenant_id = $1 AND d.deleted_at IS NULL AND d.id = $2;

-- name: list_versions
-- Newest first.
SELECT v.number, v.title, t.hash, t.chars, v.fetched_at, v.created_at
FROM documents d JOIN versions v ON v.document_id = d.id JOIN contents t ON t.id = v.content_id
WHERE d.tenant_id = $1 AND d.id = $2 AND d.deleted_at IS NULL AND ($3::int IS NULL OR v.number < $3)
ORDER BY v.number DESC LIMIT $4;

-- name: version_text
SELECT t.text FROM documents d JOIN versions v ON v.document_id = d.id JOIN contents t ON t.id = v.content_id
WHERE d.tenant_id = $1 AND d.id = $2 AND v.number = coalesce($3, d.version) AND d.deleted_at IS NULL;

-- name: texts_to_embed
-- The current text of each document that is still there, in the collection named.
SELECT d.id, d.version, d.title, t.text
FROM documents d
JOIN versions v ON v.document_id = d.id AND v.number = d.version
JOIN contents t ON t.id = v.content_id
WHERE d.collection_id = $1 AND d.id = ANY($2::uuid[]) AND d.deleted_at IS NULL;

-- name: drop_misfits
-- An unfinished edition of another length was cut by another splitter under the same name: it could never complete.
DELETE FROM editions e USING unnest($2::uuid[], $3::int[], $4::int[]) AS n (document_id, version, chunks)
WHERE e.document_id = n.document_id AND e.version = n.version AND e.chunker = $1
  AND e.completed_at IS NULL AND e.chunks <> n.chunks;

-- name: begin_editions
-- One edition a version and chunker, whoever begins it. Ordered, so that two who begin the same do not deadlock.
INSERT INTO editions (collection_id, document_id, version, chunker, chunks)
SELECT $1, n.document_id, n.version, $2, n.chunks
FROM unnest($3::uuid[], $4::int[], $5::int[]) AS n (document_id, version, chunks)
JOIN versions v ON v.document_id = n.document_id AND v.number = n.version
ORDER BY n.document_id
ON CONFLICT (document_id, version, chunker) DO NOTHING;

-- name: editions_of
-- `stored` tells a second attempt how far the first one came.
SELECT e.id, e.document_id, e.version, e.chunks, e.completed_at IS NOT NULL AS is_complete,
       (SELECT count(*) FROM chunks c WHERE c.edition_id = e.id) AS stored
FROM unnest($2::uuid[], $3::int[]) AS n (document_id, version)
JOIN editions e ON e.document_id = n.document_id AND e.version = n.version AND e.chunker = $1;

-- name: store_chunks
-- What is there already is left as it is: the same version, chunker and model give the same chunk.
INSERT INTO chunks (id, edition_id, ordinal, start_at, end_at, heading, tsv, vector)
SELECT n.id, n.edition_id, n.ordinal, n.start_at, n.end_at, n.heading,
       to_tsvector('simple', n.words) || array_to_tsvector(ARRAY['#' || $1::bigint]), n.vector
FROM unnest($2::uuid[], $3::bigint[], $4::int[], $5::int[], $6::int[], $7::text[], $8::text[], $9::bytea[])
     AS n (id, edition_id, ordinal, start_at, end_at, heading, words, vector)
ORDER BY n.edition_id, n.ordinal
ON CONFLICT (edition_id, ordinal) DO NOTHING;

-- name: complete_editions
-- An edition is complete when all its chunks are there, whichever attempts stored them.
UPDATE editions e SET completed_at = now()
WHERE e.id = ANY($1::bigint[]) AND e.completed_at IS NULL
  AND e.chunks = (SELECT count(*) FROM chunks c WHERE c.edition_id = e.id)
RETURNING e.id;

-- name: stored_ordinals
SELECT edition_id, ordinal FROM chunks WHERE edition_id = ANY($1::bigint[]);

-- name: pending_editions
-- The newest complete edition of each document, unless the document shows that version or a newer one already.
SELECT id, document_id, chunks FROM (
    SELECT DISTINCT ON (e.document_id) e.id, e.document_id, e.chunks
    FROM editions e
    JOIN documents d ON d.id = e.document_id AND d.deleted_at IS NULL
    WHERE e.collection_id = $1 AND e.born_gen IS NULL AND e.completed_at IS NOT NULL
      AND NOT EXISTS (
          SELECT FROM editions s
          WHERE s.document_id = e.document_id AND s.born_gen IS NOT NULL AND (s.version, s.id) > (e.version, e.id))
    ORDER BY e.document_id, e.version DESC, e.id DESC
) newest
ORDER BY id LIMIT $2;

-- name: edition_vectors
SELECT vector_id, vector FROM chunks WHERE edition_id = ANY($1::bigint[]) ORDER BY vector_id;

-- name: range_editions
-- What a segment of (low, high] holds for a reader of this generation or a later one.
SELECT id, chunks FROM editions
WHERE collection_id = $1 AND born_gen > $2 AND born_gen <= $3 AND (died_gen IS NULL OR died_gen > $4)
ORDER BY id;

-- name: advance_generation
-- The compare-and-set: exactly one writer makes generation $2 out of the one before it.
UPDATE collections SET generation = $2 WHERE id = $1 AND generation = $2 - 1 AND deleted_at IS NULL
RETURNING id;

-- name: retire_editions
-- The shown edition of each document that gets a new one ends with the generation before.
UPDATE editions o SET died_gen = $2, died_at = now()
FROM editions n
WHERE n.id = ANY($1::bigint[]) AND o.document_id = n.document_id AND o.id <> n.id
  AND o.born_gen IS NOT NULL AND o.died_gen IS NULL;

-- name: bear_editions
-- The generation is theirs for ever; an edition that was born by somebody else in between makes the counts differ.
UPDATE editions SET born_gen = $2 WHERE id = ANY($1::bigint[]) AND born_gen IS NULL RETURNING id;

-- name: add_segment
INSERT INTO segments (id, collection_id, low_gen, high_gen, vectors, file_name, checksum)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: lock_collection
-- Merges do not move the generation, so they exclude each other and the writers by this lock.
SELECT generation FROM collections WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- name: retire_segments
UPDATE segments SET retired_at = now() WHERE collection_id = $1 AND id = ANY($2::uuid[]) AND retired_at IS NULL
RETURNING id;

-- name: index_state
-- One row a segment in one snapshot; a collection without segments is one row of nulls.
SELECT c.id AS collection_id, c.generation, c.dimensions, c.model_digest, c.model_name,
       s.id, s.low_gen, s.high_gen, s.vectors, s.file_name, s.checksum
FROM collections c LEFT JOIN segments s ON s.collection_id = c.id AND s.retired_at IS NULL
WHERE c.tenant_id = $1 AND c.name = $2 AND c.deleted_at IS NULL
ORDER BY s.low_gen;

-- name: live_chunks_of
-- How many chunks of these documents a search finds now.
SELECT coalesce(sum(e.chunks), 0)::bigint FROM editions e
WHERE e.collection_id = $1 AND ($2::uuid[] IS NULL OR e.document_id = ANY($2))
  AND e.born_gen IS NOT NULL AND e.died_gen IS NULL;

-- name: dead_vectors
SELECT c.vector_id FROM editions e JOIN chunks c ON c.edition_id = e.id
WHERE e.collection_id = $1 AND e.died_gen > $2 AND e.died_gen <= $3;

-- name: query_lexemes
-- The words of a query as the index has them.
SELECT lexeme FROM unnest(to_tsvector('simple', $1)) LIMIT $2;

-- name: count_lexemes
-- How many chunks have each word, counted up to a bound: beyond it a word is common, and how common matters little.
SELECT n.chunks FROM unnest($1::text[]) WITH ORDINALITY AS w (query, place)
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks FROM (SELECT FROM chunks WHERE tsv @@ w.query::tsquery LIMIT $2) AS found
) n
ORDER BY w.place;

-- name: text_candidates
-- The best chunks by their words: $4 are the words, $5 their weights (inverse document frequency). ts_rank of one word
-- grows with its frequency and saturates, as BM25's does. MATERIALIZED, so that the match comes first whatever the
-- statistics say.
WITH matched AS MATERIALIZED (
    SELECT vector_id, edition_id, tsv FROM chunks WHERE tsv @@ $3::tsquery LIMIT $6
)
SELECT m.vector_id
FROM matched m
JOIN editions e ON e.id = m.edition_id
JOIN documents d ON d.id = e.document_id
CROSS JOIN LATERAL (
    SELECT sum(w.weight * ts_rank(m.tsv, w.query::tsquery)) AS score
    FROM unnest($4::text[], $5::float8[]) AS w (query, weight)
) s
WHERE e.collection_id = $1 AND e.born_gen <= $2 AND (e.died_gen IS NULL OR e.died_gen > $2) AND d.deleted_at IS NULL
  AND ($8::uuid[] IS NULL OR d.id = ANY($8)) AND ($9::text IS NULL OR starts_with(d.url, $9))
  AND ($10::text[] IS NULL OR d.tags @> $10)
ORDER BY s.score DESC, m.vector_id LIMIT $7;

-- name: score_candidates
-- What is left of both legs' candidates in the pinned generation, with the text score of each, and the vectors of
-- those ($6) whose similarity is not known yet. Here a deleted document falls out, whatever the index still holds.
WITH named AS MATERIALIZED (
    SELECT vector_id, edition_id, tsv, CASE WHEN vector_id = ANY($6::bigint[]) THEN vector END AS vector
    FROM chunks WHERE vector_id = ANY($3::bigint[])
)
SELECT n.vector_id, n.vector, s.score
FROM named n
JOIN editions e ON e.id = n.edition_id
JOIN documents d ON d.id = e.document_id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(w.weight * ts_rank(n.tsv, w.query::tsquery)), 0) AS score
    FROM unnest($4::text[], $5::float8[]) AS w (query, weight)
) s
WHERE e.collection_id = $1 AND e.born_gen <= $2 AND (e.died_gen IS NULL OR e.died_gen > $2) AND d.deleted_at IS NULL
  AND ($7::uuid[] IS NULL OR d.id = ANY($7)) AND ($8::text IS NULL OR starts_with(d.url, $8))
  AND ($9::text[] IS NULL OR d.tags @> $9);

-- name: allowed_vectors
-- The chunks that a filter leaves, so that a narrow one is not lost among the index's best.
SELECT c.vector_id
FROM documents d
JOIN editions e ON e.document_id = d.id
JOIN chunks c ON c.edition_id = e.id
WHERE d.collection_id = $1 AND e.born_gen <= $2 AND (e.died_gen IS NULL OR e.died_gen > $2) AND d.deleted_at IS NULL
  AND ($3::uuid[] IS NULL OR d.id = ANY($3)) AND ($4::text IS NULL OR starts_with(d.url, $4))
  AND ($5::text[] IS NULL OR d.tags @> $5)
LIMIT $6;

-- name: read_hits
-- The passages themselves, checked once more against deletions.
WITH named AS MATERIALIZED (
    SELECT vector_id, id, edition_id, start_at, end_at, heading FROM chunks WHERE vector_id = ANY($3::bigint[])
)
SELECT n.vector_id, n.id, n.start_at, n.end_at, n.heading,
       substr(t.text, n.start_at + 1, n.end_at - n.start_at) AS text,
       d.id AS document_id, d.url, coalesce(v.title, d.title) AS title
FROM named n
JOIN editions e ON e.id = n.edition_id
JOIN documents d ON d.id = e.document_id
JOIN versions v ON v.document_id = e.document_id AND v.number = e.version
JOIN contents t ON t.id = v.content_id
WHERE e.collection_id = $1 AND e.born_gen <= $2 AND (e.died_gen IS NULL OR e.died_gen > $2) AND d.deleted_at IS NULL;

-- name: delete_document
-- Hidden from the commit on: every search joins this row. What hangs on it is purged later.
UPDATE documents d SET deleted_at = now() FROM collections c
WHERE d.tenant_id = $1 AND d.id = $2 AND d.deleted_at IS NULL AND c.id = d.collection_id AND c.deleted_at IS NULL
RETURNING d.url, c.name AS collection;

-- name: delete_collection
UPDATE collections SET deleted_at = now() WHERE tenant_id = $1 AND name = $2 AND deleted_at IS NULL
RETURNING id;

-- name: delete_documents_of
UPDATE documents SET deleted_at = now() WHERE collection_id = $1 AND deleted_at IS NULL RETURNING id, url;

-- name: waiting_upload_bytes
SELECT coalesce(sum(octet_length(content)), 0)::bigint FROM uploads WHERE tenant_id = $1;

-- name: put_upload
INSERT INTO uploads (id, tenant_id, collection, key, file_name, media_type, title, url, tags, content)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: get_upload
SELECT id, collection, key, file_name, media_type, title, url, tags, content FROM uploads
WHERE tenant_id = $1 AND id = $2;

-- name: delete_upload
DELETE FROM uploads WHERE tenant_id = $1 AND id = $2;

-- name: expire_uploads
DELETE FROM uploads WHERE created_at < now() - make_interval(secs => $1) RETURNING id;

-- name: purge_editions
-- Chunks that no search can still be reading: dead for longer than any search takes, or passed over by a newer version.
DELETE FROM editions WHERE id IN (
    SELECT id FROM editions WHERE died_at < now() - make_interval(secs => $1)
    UNION ALL
    SELECT o.id FROM editions o
    JOIN editions s ON s.document_id = o.document_id AND s.born_gen IS NOT NULL AND (s.version, s.id) > (o.version, o.id)
    WHERE o.born_gen IS NULL AND o.created_at < now() - make_interval(secs => $1)
    LIMIT $2)
RETURNING id;

-- name: purge_documents
DELETE FROM documents WHERE id IN (
    SELECT id FROM documents WHERE deleted_at < now() - make_interval(secs => $1) LIMIT $2)
RETURNING id;

-- name: purge_collections
-- Only empty ones: their documents went first, in portions.
DELETE FROM collections c WHERE c.deleted_at < now() - make_interval(secs => $1)
  AND NOT EXISTS (SELECT FROM documents d WHERE d.collection_id = c.id)
RETURNING c.id;

-- name: purge_versions
-- History is kept to the newest $1 versions of a document; what a search shows stays whatever its age.
DELETE FROM versions v USING documents d
WHERE d.id = v.document_id AND d.version > $1 AND v.number <= d.version - $1
  AND NOT EXISTS (
      SELECT FROM editions e
      WHERE e.document_id = v.document_id AND e.version = v.number AND e.born_gen IS NOT NULL
        AND (e.died_gen IS NULL OR e.died_at > now() - make_interval(secs => $2)))
RETURNING v.number;

-- name: purge_contents
-- A text that no version has. One that was touched lately may be about to get a version in a transaction not seen here.
DELETE FROM contents t WHERE t.touched_at < now() - make_interval(secs => $1)
  AND NOT EXISTS (SELECT FROM versions v WHERE v.content_id = t.id)
RETURNING t.id;

-- name: purge_segments
DELETE FROM segments WHERE retired_at < now() - make_interval(secs => $1) RETURNING id;

-- name: unsegmented_editions
-- Audit: shown editions whose chunks lie in no live segment, or in more than one.
SELECT e.id, count(s.id) AS segments
FROM editions e
LEFT JOIN segments s ON s.collection_id = e.collection_id AND s.retired_at IS NULL
    AND e.born_gen > s.low_gen AND e.born_gen <= s.high_gen
WHERE e.collection_id = $1 AND e.born_gen IS NOT NULL AND e.died_gen IS NULL AND e.chunks > 0
GROUP BY e.id HAVING count(s.id) <> 1
LIMIT $2;

-- name: broken_editions
-- Audit: shown or complete editions that have lost chunks, or vectors of a wrong length.
SELECT e.id FROM editions e JOIN collections k ON k.id = e.collection_id
LEFT JOIN chunks c ON c.edition_id = e.id AND octet_length(c.vector) = 4 * k.dimensions
WHERE e.collection_id = $1 AND e.completed_at IS NOT NULL
GROUP BY e.id HAVING count(c.id) <> e.chunks
LIMIT $2;

-- name: future_editions
-- Audit: editions of a generation that the collection has not reached, and segments of one.
SELECT e.id FROM editions e JOIN collections k ON k.id = e.collection_id
WHERE e.collection_id = $1 AND greatest(e.born_gen, e.died_gen) > k.generation
LIMIT $2;

-- name: overlapping_segments
SELECT a.id FROM segments a JOIN segments b ON b.collection_id = a.collection_id AND b.id <> a.id
    AND a.low_gen < b.high_gen AND b.low_gen < a.high_gen
WHERE a.collection_id = $1 AND a.retired_at IS NULL AND b.retired_at IS NULL
LIMIT $2;

-- name: shown_vectors
-- Audit: what an index at this generation must be able to find.
SELECT c.vector_id FROM editions e
JOIN documents d ON d.id = e.document_id AND d.deleted_at IS NULL
JOIN chunks c ON c.edition_id = e.id
WHERE e.collection_id = $1 AND e.born_gen <= $2 AND (e.died_gen IS NULL OR e.died_gen > $2)
ORDER BY c.vector_id;

-- name: foreign_vectors
-- Audit: of these ids, those whose chunks are another collection's, or not born yet. Purged ones are nobody's harm.
SELECT c.vector_id FROM chunks c JOIN editions e ON e.id = c.edition_id
WHERE c.vector_id = ANY($2::bigint[]) AND (e.collection_id <> $1 OR e.born_gen IS NULL OR e.born_gen > $3)
ORDER BY c.vector_id;

-- name: register_search_server
INSERT INTO search_servers (id, node_id, url, host, pid) VALUES ($1, $2, $3, $4, $5);

-- name: beat_search_server
UPDATE search_servers SET beat_at = clock_timestamp() WHERE id = $1 RETURNING id;

-- name: leave_search_server
DELETE FROM search_servers WHERE id = $1;

-- name: live_search_servers
-- The caller's own node first, then the one that was heard last.
SELECT id, node_id, url FROM search_servers
WHERE beat_at > clock_timestamp() - make_interval(secs => $2)
ORDER BY node_id <> $1, beat_at DESC LIMIT $3;

-- name: purge_search_servers
DELETE FROM search_servers WHERE beat_at < clock_timestamp() - make_interval(secs => $1) RETURNING id;

-- name: make_secret
INSERT INTO internal_secrets (name, secret) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING;

-- name: read_secret
SELECT secret FROM internal_secrets WHERE name = $1;
