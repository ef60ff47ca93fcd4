-- Templates and snapshots: one table, one name space. Portable SQL, as in 00001.

-- +goose Up
CREATE TABLE templates (
    id                TEXT PRIMARY KEY,
    name              TEXT    NOT NULL UNIQUE,
    type              TEXT    NOT NULL,
    state             TEXT    NOT NULL,
    reason            TEXT    NOT NULL DEFAULT '',
    host_id           TEXT    NOT NULL REFERENCES hosts (id),
    digest            TEXT    NOT NULL DEFAULT '',
    snapshot_id       TEXT    NOT NULL DEFAULT '',
    runtime           TEXT    NOT NULL DEFAULT '',
    isolation         TEXT    NOT NULL DEFAULT '',
    vcpus             INTEGER NOT NULL DEFAULT 0,
    memory_mb         INTEGER NOT NULL DEFAULT 0,
    disk_size_mb      INTEGER NOT NULL DEFAULT 0,
    disk_bytes        BIGINT  NOT NULL DEFAULT 0,
    size_bytes        BIGINT  NOT NULL DEFAULT 0,
    own_bytes         BIGINT  NOT NULL DEFAULT 0,
    parent_id         TEXT    NOT NULL DEFAULT '',
    source_sandbox_id TEXT    NOT NULL DEFAULT '',
    built_by_host     BOOLEAN NOT NULL DEFAULT FALSE,
    disk_only         BOOLEAN NOT NULL DEFAULT FALSE,
    frozen_us         BIGINT  NOT NULL DEFAULT 0,
    phases            TEXT    NOT NULL DEFAULT '[]',
    warm              TEXT    NOT NULL DEFAULT '[]',
    claim_id          TEXT    NOT NULL DEFAULT '',
    claim_deadline    BIGINT  NOT NULL DEFAULT 0,
    version           BIGINT  NOT NULL DEFAULT 1,
    created_at        BIGINT  NOT NULL
);
CREATE INDEX templates_newest ON templates (created_at, id);
CREATE INDEX templates_source ON templates (source_sandbox_id);
CREATE INDEX templates_parent ON templates (parent_id);

ALTER TABLE sandboxes ADD COLUMN template_id TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN forked_from TEXT NOT NULL DEFAULT '';
CREATE INDEX sandboxes_template ON sandboxes (template_id);

-- +goose Down
DROP INDEX sandboxes_template;
ALTER TABLE sandboxes DROP COLUMN forked_from;
ALTER TABLE sandboxes DROP COLUMN template_id;
DROP TABLE templates;
