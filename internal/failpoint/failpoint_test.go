//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

const helper = "FAILPOINT_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helper) != "" {
		_ = Hit("a.b.c")
		os.Exit(7) // only when it survived
	}
	os.Exit(m.Run())
}

func TestErrorForms(t *testing.T) {
	armed := filepath.Join(t.TempDir(), "armed")
	t.Setenv("ROOST_FAILPOINTS", "x.y.z=error,a.b.c=error@"+armed)
	require.True(t, Enabled)
	require.EqualError(t, Hit("x.y.z"), "failpoint x.y.z")
	require.NoError(t, Hit("x.y"), "a part of a name is another name")
	require.NoError(t, Hit("a.b.c"), "while the file is not there")
	require.NoError(t, os.WriteFile(armed, nil, 0o600))
	require.EqualError(t, Hit("a.b.c"), "failpoint a.b.c")
	require.NoError(t, os.Remove(armed))
	require.NoError(t, Hit("a.b.c"))
	t.Setenv("ROOST_FAILPOINTS", "")
	require.NoError(t, Hit("x.y.z"))
}

func TestKillForm(t *testing.T) {
	t.Parallel()
	for spec, signalled := range map[string]bool{"a.b.c=kill": true, "other=kill": false} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helper+"=1", "ROOST_FAILPOINTS="+spec)
		err := cmd.Run()
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit))
		status := exit.Sys().(syscall.WaitStatus)
		require.Equal(t, signalled, status.Signaled() && status.Signal() == syscall.SIGKILL, spec)
		require.Equal(t, !signalled, status.ExitStatus() == 7, spec)
	}
}
