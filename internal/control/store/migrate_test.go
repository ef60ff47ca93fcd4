package store

import (
	"database/sql"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"
)

// A database of before templates had a table keeps its sandboxes, on the way up and down.
func TestMigratesADatabaseWithoutTemplates(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), FileName)
	db, err := sql.Open("sqlite", dsn(path, "_txlock=immediate"))
	require.NoError(t, err)
	files, err := fs.Sub(migrations, "migrations")
	require.NoError(t, err)
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	require.NoError(t, err)
	_, err = p.UpTo(t.Context(), 1)
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), `INSERT INTO hosts VALUES ('local', 'box', 1, 1);
		INSERT INTO sandboxes (id, host_id, state, template, vcpus, memory_mb, created_at)
		VALUES ('one', 'local', 'paused', 'base', 1, 512, 7)`)
	require.NoError(t, err)
	for range 2 {
		s, err := OpenSQLite(t.Context(), path)
		require.NoError(t, err)
		row, err := s.Sandbox(t.Context(), "one")
		require.NoError(t, err)
		require.Equal(t, Paused, row.State)
		require.Empty(t, row.TemplateID)
		require.NoError(t, s.AddTemplate(t.Context(), &Template{ID: "b", Name: "base", Type: BaseTemplate,
			State: TemplateReady, HostID: "local", BuiltByHost: true, Version: 1}))
		row, err = s.Sandbox(t.Context(), "one")
		require.NoError(t, err)
		require.Equal(t, "b", row.TemplateID)
		require.NoError(t, s.Close())
		_, err = p.DownTo(t.Context(), 1)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
}
