-- The corpus: documents, their versions, the chunks cut from them, and the generations in which chunks are searchable.
-- A chunk set (`editions`) is immutable; what moves is two numbers on it, born_gen and died_gen, in one step for
-- the whole document (docs/decisions/0007-corpus-and-generations.md).

CREATE TABLE collections (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id     int NOT NULL REFERENCES tenants (id),
    name          text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    model_name    text,
    model_digest  text,
    dimensions    int CHECK (dimensions > 0),
    generation    bigint NOT NULL DEFAULT 0 CHECK (generation >= 0),
    created_at    timestamptz NOT NULL DEFAULT now(),
    deleted_at    timestamptz,
    CHECK ((model_digest IS NULL) = (dimensions IS NULL))
);
CREATE UNIQUE INDEX collections_name ON collections (tenant_id, name) WHERE deleted_at IS NULL;
CREATE INDEX collections_deleted ON collections (deleted_at) WHERE deleted_at IS NOT NULL;

-- `key` identifies a document in its collection: the URL of a page, or the caller's own key. `page_hash` and
-- `links` are the crawler's: what its last visit saw, so that a page that has not changed is still followed.
CREATE TABLE documents (
    id             uuid PRIMARY KEY,
    tenant_id      int NOT NULL,
    collection_id  bigint NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    key            text NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 2048),
    url            text,
    title          text,
    tags           text[] NOT NULL DEFAULT '{}',
    version        int NOT NULL DEFAULT 0 CHECK (version >= 0),
    etag           text,
    last_modified  text,
    page_hash      text,
    links          text[],
    created_at     timestamptz NOT NULL DEFAULT now(),
    changed_at     timestamptz NOT NULL DEFAULT now(),
    fetched_at     timestamptz NOT NULL DEFAULT now(),
    deleted_at     timestamptz
);
CREATE UNIQUE INDEX documents_key ON documents (collection_id, key) WHERE deleted_at IS NULL;
CREATE INDEX documents_list ON documents (tenant_id, id);
CREATE INDEX documents_by_collection ON documents (collection_id, id);
CREATE INDEX documents_deleted ON documents (deleted_at) WHERE deleted_at IS NOT NULL;

-- A text is kept once a tenant, however many documents and versions have it.
CREATE TABLE contents (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   int NOT NULL,
    hash        bytea NOT NULL CHECK (octet_length(hash) = 32),
    text        text NOT NULL,
    chars       int NOT NULL,
    touched_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, hash)
);
CREATE INDEX contents_age ON contents (touched_at);

CREATE TABLE versions (
    document_id  uuid NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    number       int NOT NULL CHECK (number > 0),
    content_id   bigint NOT NULL REFERENCES contents (id),
    title        text,
    fetched_at   timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (document_id, number)
);
CREATE INDEX versions_by_content ON versions (content_id);

-- The chunks of one version, cut by one chunker. Visible in generation g: born_gen <= g and not died_gen <= g.
CREATE TABLE editions (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id  bigint NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    document_id    uuid NOT NULL,
    version        int NOT NULL,
    chunker        text NOT NULL,
    chunks         int NOT NULL CHECK (chunks >= 0),
    created_at     timestamptz NOT NULL DEFAULT now(),
    completed_at   timestamptz,
    born_gen       bigint CHECK (born_gen > 0),
    died_gen       bigint,
    died_at        timestamptz,
    UNIQUE (document_id, version, chunker),
    FOREIGN KEY (document_id, version) REFERENCES versions (document_id, number) ON DELETE CASCADE,
    CHECK (born_gen IS NULL OR completed_at IS NOT NULL),
    CHECK (died_gen > born_gen),
    CHECK (died_gen IS NULL OR born_gen IS NOT NULL)
);
CREATE UNIQUE INDEX editions_live ON editions (document_id) WHERE born_gen IS NOT NULL AND died_gen IS NULL;
CREATE INDEX editions_pending ON editions (collection_id, id) WHERE born_gen IS NULL AND completed_at IS NOT NULL;
CREATE INDEX editions_born ON editions (collection_id, born_gen) WHERE born_gen IS NOT NULL;
CREATE INDEX editions_dead ON editions (died_at) WHERE died_at IS NOT NULL;

-- The text of a chunk is [start_at, end_at) of its version's text, in characters. `vector` is float32, little endian,
-- of length 1. `tsv` holds, beside the words, the lexeme '#<collection id>', so that one GIN scan stays in one
-- collection. Rows are written once and never updated.
CREATE TABLE chunks (
    id          uuid PRIMARY KEY,
    vector_id   bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    edition_id  bigint NOT NULL REFERENCES editions (id) ON DELETE CASCADE,
    ordinal     int NOT NULL CHECK (ordinal >= 0),
    start_at    int NOT NULL,
    end_at      int NOT NULL,
    heading     text NOT NULL DEFAULT '',
    tsv         tsvector NOT NULL,
    vector      bytea NOT NULL,
    UNIQUE (edition_id, ordinal),
    CHECK (0 <= start_at AND start_at < end_at)
);
-- No pending list: every search would read it whole, and vectors come too slowly for it to gain anything.
CREATE INDEX chunks_tsv ON chunks USING gin (tsv) WITH (fastupdate = off);
-- Random floats do not compress; out of line they do not widen the rows that the text search reads.
ALTER TABLE chunks ALTER COLUMN vector SET STORAGE EXTERNAL;

-- A segment's definition is a range of generations: the chunks born in (low_gen, high_gen]. The live segments of a
-- collection tile (0, generation]. The file is a cache of that, named here and rebuilt wherever it is missing.
CREATE TABLE segments (
    id             uuid PRIMARY KEY,
    collection_id  bigint NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    low_gen        bigint NOT NULL CHECK (low_gen >= 0),
    high_gen       bigint NOT NULL,
    vectors        int NOT NULL CHECK (vectors >= 0),
    file_name      text NOT NULL,
    checksum       text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    retired_at     timestamptz,
    CHECK (low_gen < high_gen)
);
CREATE UNIQUE INDEX segments_low ON segments (collection_id, low_gen) WHERE retired_at IS NULL;
CREATE UNIQUE INDEX segments_high ON segments (collection_id, high_gen) WHERE retired_at IS NULL;
CREATE INDEX segments_retired ON segments (retired_at) WHERE retired_at IS NOT NULL;

-- Raw bytes of POST /documents, until the ingest job has made a document of them.
CREATE TABLE uploads (
    id             uuid PRIMARY KEY,
    tenant_id      int NOT NULL,
    collection     text NOT NULL,
    key            text NOT NULL,
    file_name      text,
    media_type     text NOT NULL,
    title          text,
    url            text,
    tags           text[] NOT NULL DEFAULT '{}',
    content        bytea NOT NULL CHECK (octet_length(content) <= 33554432),
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX uploads_by_tenant ON uploads (tenant_id, created_at);
ALTER TABLE uploads ALTER COLUMN content SET STORAGE EXTERNAL;

-- Search processes announce themselves, so that the API finds one without configuration. node_id = a data directory.
CREATE TABLE search_servers (
    id          uuid PRIMARY KEY,
    node_id     text NOT NULL,
    url         text NOT NULL,
    host        text NOT NULL,
    pid         int NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at     timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- What processes of one installation prove to each other that they belong to it.
CREATE TABLE internal_secrets (
    name        text PRIMARY KEY,
    secret      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- lz4 unpacks a text several times faster than pglz; a server built without it keeps its default.
DO $$
BEGIN
    ALTER TABLE contents ALTER COLUMN text SET COMPRESSION lz4;
    ALTER TABLE chunks ALTER COLUMN tsv SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN
    NULL;
END
$$;
