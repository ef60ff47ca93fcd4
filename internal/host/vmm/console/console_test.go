package console

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConsoleKeepsTheNewestMiB(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	guest, agent := net.Pipe()
	seen := 0
	c, err := Open(dir, agent, func(text []byte) { seen += len(text) })
	require.NoError(t, err)
	line := append(bytes.Repeat([]byte("z"), 1023), '\n')
	for range 3000 {
		_, err := guest.Write(line)
		require.NoError(t, err)
	}
	_, err = guest.Write([]byte("the end"))
	require.NoError(t, err)
	require.NoError(t, guest.Close())
	<-c.Done()
	require.Equal(t, 3000*1024+len("the end"), seen)
	kept, err := Read(dir)
	require.NoError(t, err)
	require.LessOrEqual(t, len(kept), 2*half)
	require.Greater(t, len(kept), half)
	require.True(t, bytes.HasSuffix(kept, []byte("the end")))
	require.True(t, bytes.HasSuffix(c.Recent(), []byte("the end")))
	require.Len(t, c.Recent(), tailSize)
}

// TestConsoleSurvivesItsFiles: a guest prints on when its files cannot be written.
func TestConsoleSurvivesItsFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	require.NoError(t, os.Mkdir(dir, 0o700))
	guest, agent := net.Pipe()
	c, err := Open(dir, agent, nil)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	for range 200 {
		_, err := guest.Write(make([]byte, 8192))
		require.NoError(t, err)
	}
	require.NoError(t, guest.Close())
	<-c.Done()
	kept, err := Read(dir)
	require.NoError(t, err)
	require.Empty(t, kept)
}

func TestPanic(t *testing.T) {
	t.Parallel()
	why, found := Panic([]byte("x\n[ 1.0] Kernel panic - not syncing: no \x1b[31minit\r\n[ 1.1] more\n"))
	require.True(t, found)
	require.Equal(t, "guest panicked: no [31minit", why)
	_, found = Panic([]byte("bye"))
	require.False(t, found)
}
