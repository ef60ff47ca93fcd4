// Package guesttest is what tests of the guest share. They run on the host's kernel and, by the
// test of package guest, on gVisor's.
package guesttest

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Patience is how long a test waits for what must happen; it fails after it, and never before.
const Patience = 30 * time.Second

// Cgroup makes a cgroup v2 of the test's own. It must be empty at the end.
func Cgroup(t *testing.T) string {
	t.Helper()
	cgroup := filepath.Join(cgroupMount(t), "roost-guest-test-"+strings.ToLower(rand.Text()[:10]))
	require.NoError(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() {
		// The last process has been told to end, and may still be on its way.
		require.Eventually(t, func() bool { return !errors.Is(unix.Rmdir(cgroup), unix.EBUSY) }, Patience, 2*time.Millisecond)
	})
	return cgroup
}

// cgroupMount is where cgroup v2 is: alone, or beside v1.
func cgroupMount(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(path + "/cgroup.procs"); err == nil && os.Getuid() == 0 {
			return path
		}
	}
	t.Skip("needs root and cgroup v2 at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	return ""
}

// InGVisor says which kernel this is.
func InGVisor(t *testing.T) bool {
	t.Helper()
	var name unix.Utsname
	require.NoError(t, unix.Uname(&name))
	return strings.Contains(unix.ByteSliceToString(name.Release[:]), "gvisor")
}

// NotInGVisor skips a test of what gVisor's kernel cannot do.
func NotInGVisor(t *testing.T, why string) {
	t.Helper()
	if InGVisor(t) {
		t.Skip("gVisor cannot: " + why)
	}
}
