package qemu

import (
	"testing"

	"github.com/stretchr/testify/require"
)

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
