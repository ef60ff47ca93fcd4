//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The points of these tests; x.y is nobody's.
var _ = Declare("a.b.c", "x.y.z", "x.y", "other")

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

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("ROOST_FAILPOINTS", "@"+dir)
	require.NoError(t, Hit("x.y.z"))
	arm := func(action string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "x.y.z"), []byte(action), 0o600))
	}
	arm("error")
	require.EqualError(t, Hit("x.y.z"), "failpoint x.y.z")
	require.Error(t, Hit("x.y.z"), "as long as the file is there")
	require.NoError(t, Hit("a.b.c"))
	arm("once")
	require.Error(t, Hit("x.y.z"))
	require.NoError(t, Hit("x.y.z"))
	require.NoFileExists(t, filepath.Join(dir, "x.y.z"))
	arm("hold")
	done := make(chan error)
	go func() { done <- Hit("x.y.z") }()
	for !exists(filepath.Join(dir, "x.y.z.held")) {
		runtime.Gosched()
	}
	require.Empty(t, done)
	arm("error")
	require.Error(t, <-done)
}

// TestDeclared: a point is declared once, and a step that hits one that is not is a mistake in the
// program.
func TestDeclared(t *testing.T) {
	t.Parallel()
	require.Contains(t, Names(), "a.b.c")
	require.IsIncreasing(t, Names())
	require.Panics(t, func() { Declare("a.b.c") })
	require.Panics(t, func() { _ = Hit("never.declared.anywhere") })
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
