package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openSQLite(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "data ?#%20", store.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	storetest.Run(t, openSQLite)
}

func TestFilesArePrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sub", store.FileName)
	s, err := store.OpenSQLite(t.Context(), path)
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, s.PutHost(t.Context(), &store.Host{ID: "local"}))
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
	}
}

func TestReopenKeepsRows(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), store.FileName)
	s, err := store.OpenSQLite(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, s.PutHost(t.Context(), &store.Host{ID: "local", Hostname: "box"}))
	require.NoError(t, s.Close())
	s, err = store.OpenSQLite(t.Context(), path)
	require.NoError(t, err)
	defer s.Close()
	h, err := s.Host(t.Context(), "local")
	require.NoError(t, err)
	require.Equal(t, "box", h.Hostname)
}

func TestOpenSaysWhatFailed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), store.FileName)
	require.NoError(t, os.WriteFile(path, []byte("this is not a database at all, not by far, no no no no no"), 0o600))
	_, err := store.OpenSQLite(t.Context(), path)
	require.ErrorContains(t, err, "migrate database "+path)
}
