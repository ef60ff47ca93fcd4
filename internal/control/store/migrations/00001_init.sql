-- Portable SQL only: the same file is meant for SQLite and PostgreSQL. Times are
-- microseconds since 1970 (text times do not compare the same way in both).

-- +goose Up
CREATE TABLE hosts (
    id         TEXT PRIMARY KEY,
    hostname   TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    name         TEXT   NOT NULL,
    prefix       TEXT   NOT NULL,
    hash         TEXT   NOT NULL UNIQUE,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE sandboxes (
    id                TEXT PRIMARY KEY,
    host_id           TEXT    NOT NULL REFERENCES hosts (id),
    state             TEXT    NOT NULL,
    reason            TEXT    NOT NULL DEFAULT '',
    template          TEXT    NOT NULL,
    runtime           TEXT    NOT NULL DEFAULT '',
    isolation         TEXT    NOT NULL DEFAULT '',
    vcpus             INTEGER NOT NULL,
    memory_mb         INTEGER NOT NULL,
    disk_size_mb      INTEGER NOT NULL DEFAULT 5120,
    idle_timeout_s    INTEGER NOT NULL DEFAULT 300,
    metadata          TEXT    NOT NULL DEFAULT '{}',
    phases            TEXT    NOT NULL DEFAULT '[]',
    disk_used_bytes   BIGINT  NOT NULL DEFAULT 0,
    memory_used_bytes BIGINT  NOT NULL DEFAULT 0,
    generation        BIGINT  NOT NULL DEFAULT 1,
    version           BIGINT  NOT NULL DEFAULT 1,
    claim_id          TEXT    NOT NULL DEFAULT '',
    claim_deadline    BIGINT  NOT NULL DEFAULT 0,
    created_at        BIGINT  NOT NULL,
    active_at         BIGINT  NOT NULL DEFAULT 0,
    deleted_at        BIGINT  NOT NULL DEFAULT 0
);
CREATE INDEX sandboxes_newest ON sandboxes (created_at, id);
CREATE INDEX sandboxes_state ON sandboxes (state, created_at, id);

CREATE TABLE idempotency_keys (
    api_key_id   TEXT   NOT NULL,
    idem_key     TEXT   NOT NULL,
    request_hash TEXT   NOT NULL,
    sandbox_id   TEXT   NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (api_key_id, idem_key)
);
CREATE INDEX idempotency_keys_sandbox ON idempotency_keys (sandbox_id);

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE sandboxes;
DROP TABLE api_keys;
DROP TABLE hosts;
