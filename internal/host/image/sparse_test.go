package image

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestWriteSparseKeepsContentAndHoles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sparse")
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.SliceOfN(rapid.Bool(), 0, 600).Draw(t, "pages")
		tail := rapid.IntRange(0, pageBytes-1).Draw(t, "tail")
		src := make([]byte, len(pages)*pageBytes+tail)
		full := 0
		for i, used := range pages {
			if used {
				full++
				src[i*pageBytes+rapid.IntRange(0, pageBytes-1).Draw(t, "at")] = 1
			}
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // with what the last round left in it
		require.NoError(t, err)
		require.NoError(t, WriteSparse(f, bytes.NewReader(src), int64(len(src))))
		require.NoError(t, f.Close())
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(src, got))
		used, err := allocated(path)
		require.NoError(t, err)
		require.LessOrEqual(t, used, int64(full+4)*pageBytes, "allocated for %d full pages", full)
	})
}

func TestWriteSparseRefusesAShortSource(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	require.NoError(t, err)
	require.ErrorContains(t, WriteSparse(f, bytes.NewReader(make([]byte, 10)), 20), "unexpected EOF")
	require.NoError(t, f.Close())
}
