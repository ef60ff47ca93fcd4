package apikey_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/roosthq/roost/internal/control/apikey"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeys(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), store.FileName)
	db, err := store.OpenSQLite(t.Context(), path)
	require.NoError(t, err)
	now := time.Now()
	var logged bytes.Buffer
	s := apikey.New(db, slog.New(slog.NewTextHandler(&logged, nil)), func() time.Time { return now })

	first, err := s.First(t.Context())
	require.NoError(t, err)
	require.Regexp(t, `^roost_[0-9a-f]{40}$`, first)
	again, err := s.First(t.Context())
	require.NoError(t, err)
	require.Empty(t, again, "made once")

	key, err := s.Authenticate(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, first[:12], key.Prefix)
	for _, bad := range []string{"", "roost_", "x", first[:45], first + "0", strings.ToUpper(first), "roost_" + strings.Repeat("0", 40)} {
		_, err := s.Authenticate(t.Context(), bad)
		require.True(t, fault.Is(err, fault.Unauthenticated), "%q: %v", bad, err)
		require.NotContains(t, err.Error(), first[10:])
	}

	used := func() store.Instant {
		keys, err := s.List(t.Context())
		require.NoError(t, err)
		return keys[0].LastUsedAt
	}
	require.Equal(t, store.At(now), used())
	at := used()
	now = now.Add(59 * time.Second)
	_, err = s.Authenticate(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, at, used())
	now = now.Add(2 * time.Second)
	_, err = s.Authenticate(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, store.At(now), used())

	for _, name := range []string{"", "  ", strings.Repeat("é", 101)} {
		_, _, err = s.Create(t.Context(), name)
		require.True(t, fault.Is(err, fault.Invalid), "%q", name)
	}
	second, secret, err := s.Create(t.Context(), strings.Repeat("é", 100))
	require.NoError(t, err)
	require.NoError(t, s.Revoke(t.Context(), key.ID))
	_, err = s.Authenticate(t.Context(), first)
	require.True(t, fault.Is(err, fault.Unauthenticated))
	_, err = s.Authenticate(t.Context(), secret)
	require.NoError(t, err)
	require.True(t, fault.Is(s.Revoke(t.Context(), second.ID), fault.FailedPrecondition), "the last key stays")

	require.NoError(t, db.Close())
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, s := range []string{first, secret} {
		require.NotContains(t, string(raw), s[12:], "no secret on disk")
		require.NotContains(t, logged.String(), s[12:], "no secret in the log")
	}
}
