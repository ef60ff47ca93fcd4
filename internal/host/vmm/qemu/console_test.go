package qemu

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
	c, err := openConsole(dir, agent)
	require.NoError(t, err)
	line := append(bytes.Repeat([]byte("z"), 1023), '\n')
	for range 3000 {
		_, err := guest.Write(line)
		require.NoError(t, err)
	}
	_, err = guest.Write([]byte("the end"))
	require.NoError(t, err)
	require.NoError(t, guest.Close())
	<-c.done
	kept, err := readConsole(filepath.Join(dir, consoleLog))
	require.NoError(t, err)
	require.LessOrEqual(t, len(kept), 2*consoleHalf)
	require.Greater(t, len(kept), consoleHalf)
	require.True(t, bytes.HasSuffix(kept, []byte("the end")))
	require.True(t, bytes.HasSuffix(c.recent(), []byte("the end")))
	require.Len(t, c.recent(), tailSize)
}

// TestConsoleSurvivesItsFiles: a guest prints on when its files cannot be written.
func TestConsoleSurvivesItsFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	require.NoError(t, os.Mkdir(dir, 0o700))
	guest, agent := net.Pipe()
	c, err := openConsole(dir, agent)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	for range 200 {
		_, err := guest.Write(make([]byte, 8192))
		require.NoError(t, err)
	}
	require.NoError(t, guest.Close())
	<-c.done
	kept, err := readConsole(filepath.Join(dir, consoleLog))
	require.NoError(t, err)
	require.Empty(t, kept)
}

func TestGuestReason(t *testing.T) {
	t.Parallel()
	panicked := []byte("x\n[ 1.0] Kernel panic - not syncing: no \x1b[31minit\r\n[ 1.1] more\n")
	require.Equal(t, "guest panicked: no [31minit", guestReason("guest-reset", panicked))
	require.Equal(t, "guest panicked", guestReason("guest-panic", nil))
	require.Equal(t, "guest rebooted", guestReason("guest-reset", []byte("bye")))
	require.Equal(t, "guest shut down", guestReason("guest-shutdown", panicked))
	require.Empty(t, guestReason("host-signal", panicked))
	require.Empty(t, guestReason("", panicked), "the guest may print what it likes")
}
