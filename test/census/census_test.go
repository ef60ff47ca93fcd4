package census

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDiffIsSortedAndNamesOnlyWhatIsNew(t *testing.T) {
	before := Census{File: Items{"a": "a"}}
	after := Census{File: Items{"a": "a", "c": "c", "b": "b"}, Link: Items{"x": "x0"}, Cgroup: Items{"g": "g"}}
	require.Equal(t, []Leak{{Cgroup, "g"}, {File, "b"}, {File, "c"}, {Link, "x0"}}, Diff(before, after))
	require.Empty(t, Diff(after, after))
	require.Empty(t, Diff(after, before), "what went away is no leak")
}

func TestOursFollowsTheTemporaryFolder(t *testing.T) {
	s := Scope{Names: []string{"roost"}, Temp: []string{"/tmp"}, TempPrefixes: []string{"Test"}}
	for path, want := range map[string]bool{
		"/tmp/TestX1/001/disk": true, "/var/lib/roost/x": true, "/tmp/go-build1/b": false,
		"/tmp": false, "/tmpTest": false, "/home/Test": false, "@roost": true, "": false,
	} {
		require.Equal(t, want, s.ours(path), path)
	}
}

// fakeT keeps what Check says of a test.
type fakeT struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (f *fakeT) Helper()          {}
func (f *fakeT) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *fakeT) Errorf(format string, args ...any) {
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}

func TestCheckFailsNamingTheLeak(t *testing.T) {
	ft := &fakeT{TB: t}
	Check(ft, Own())
	f, err := os.Open("/dev/zero")
	require.NoError(t, err)
	ft.cleanups[0]()
	require.NoError(t, f.Close())
	require.Len(t, ft.errors, 1)
	require.Contains(t, ft.errors[0], "left behind: file descriptor: ")
	require.Contains(t, ft.errors[0], "/dev/zero")
}

// Check waits for what ends a moment later.
func TestCheckWaitsForSlowCleanups(t *testing.T) {
	ft := &fakeT{TB: t}
	Check(ft, Own())
	cmd := exec.CommandContext(t.Context(), "sleep", "0.3")
	require.NoError(t, cmd.Start())
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	ft.cleanups[0]()
	require.Empty(t, ft.errors)
	require.NoError(t, <-waited)
}

func TestCommandNamesAProcessThatTheRunLeft(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "census")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/census").CombinedOutput()
	require.NoError(t, err, string(out))
	mark := RunVariable + "=" + plantName
	census := func(args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Env = append(os.Environ(), mark)
		var text bytes.Buffer
		cmd.Stderr = &text
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return text.String(), cmd.ProcessState.ExitCode()
	}
	file := filepath.Join(dir, "before")
	text, code := census("snapshot", file)
	require.Zero(t, code, text)
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	cmd.Env = []string{mark}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, cmd.Start())
	text, code = census("compare", file)
	require.Equal(t, 1, code)
	want := fmt.Sprintf("left behind: process: pid %d,", cmd.Process.Pid)
	require.Contains(t, text, want)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	text, _ = census("compare", file)
	require.False(t, strings.Contains(text, want), text)
	_, code = census("nonsense")
	require.Equal(t, 2, code)
}
