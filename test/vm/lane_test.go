package vm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// lane is the program under test, sample the tests that it runs; TestMain builds them.
var lane, sample string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "roost-lane-test-")
	if err == nil {
		lane, sample = filepath.Join(dir, "lane"), filepath.Join(dir, "sample.test")
		err = errors.Join(command("go", "build", "-o", lane, "./lane"), command("go", "test", "-c", "-o", sample, "./testdata/sample"))
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

// needsQEMU: it is optional (deploy/setup).
func needsQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (Debian: qemu-system-x86)")
	}
}

// goTest runs tests of the sample as a user does, and gives each test's last action and the output.
func goTest(t *testing.T, laneArgs, run string, flags ...string) (actions map[string]string, output string) {
	t.Helper()
	needsQEMU(t)
	args := append([]string{"test", "-json", "-count=1", "-exec", lane + " " + laneArgs + " --", "-run", "^(" + run + ")$"}, flags...)
	cmd := exec.CommandContext(t.Context(), "go", append(args, "./testdata/sample")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "ROOST_SAMPLE=passed on", "ROOST_LANE_ENV=SAMPLE_NAMED", "SAMPLE_NAMED=named", "SAMPLE_OTHER=x")
	stream, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	actions = map[string]string{}
	for line := range bytes.Lines(stream) {
		var e struct{ Action, Test, Output string }
		require.NoError(t, json.Unmarshal(line, &e), "%s", line)
		output += e.Output
		if e.Action == "pass" || e.Action == "fail" || e.Action == "skip" {
			actions[e.Test] = e.Action
		}
	}
	return actions, output
}

func TestOutcomesAreSeenAsSuch(t *testing.T) {
	t.Parallel()
	actions, output := goTest(t, "disk", "TestPass|TestSkip|TestFail")
	require.Equal(t, map[string]string{"TestPass": "pass", "TestSkip": "skip", "TestFail": "fail", "": "fail"}, actions, output)
	require.Contains(t, output, "on stdout\non stderr\n", "in the order in which it was written")
	require.Contains(t, output, "needs what is not there")
	require.Contains(t, output, "it is wrong")
}

func TestDiskShape(t *testing.T) {
	t.Parallel()
	actions, output := goTest(t, "disk", "TestTargets|TestSystem")
	require.Equal(t, map[string]string{"TestTargets": "pass", "TestSystem": "pass", "": "pass"}, actions, output)
}

func TestHostShape(t *testing.T) {
	t.Parallel()
	actions, output := goTest(t, "host -tree testdata=/mnt/tree -file testdata/file.txt=/etc/hostname", "TestTargets|TestSystem|TestHost")
	require.Equal(t, map[string]string{"TestTargets": "pass", "TestSystem": "pass", "TestHost": "pass", "": "pass"}, actions, output)
}

func TestDeathsAreToldApart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		test, lane, want string
		flags            []string
	}{
		"panic":        {test: "TestPanic", want: "panic: boom"},
		"killed":       {test: "TestKilled", want: "killed by signal 9"},
		"own limit":    {test: "TestHang", want: "test timed out after 1s", flags: []string{"-timeout=1s"}},
		"lane's limit": {test: "TestStopped", lane: "-margin 1s", want: "sysrq: Show Blocked State", flags: []string{"-timeout=1s"}},
		"kernel panic": {test: "TestKernelPanic", want: "Kernel panic - not syncing: sysrq triggered crash"},
		"leftovers":    {test: "TestLeaves", want: "mount of tmpfs on /mnt/left"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			actions, output := goTest(t, "disk "+c.lane, c.test, c.flags...)
			require.Equal(t, "fail", actions[""], output)
			require.Contains(t, output, c.want)
		})
	}
}

func TestStreamsStayApart(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), lane, "disk", "--", sample, "-test.run=^TestPass$", "-test.v")
	cmd.Dir = "testdata/sample"
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "ROOST_SAMPLE=passed on", "SAMPLE_NAMED=named", "ROOST_LANE_ENV=SAMPLE_NAMED")
	require.NoError(t, cmd.Run(), "%s%s", &stdout, &stderr)
	require.Contains(t, stdout.String(), "on stdout\n")
	require.Equal(t, "on stderr\n", stderr.String())
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"no shape":                {"round", "--", sample},
		"no program is given":     {"disk"},
		"is not HOST=/GUEST":      {"disk", "-file", "x", "--", sample},
		"brings no files back":    {"disk", "--", sample, "-test.coverprofile=x"},
		"tool no-such-tool":       {"disk", "-tool", "no-such-tool", "--", sample},
		"/no/such/drive: no such": {"disk", "-drive", "/no/such/drive=/mnt", "--", sample},
	} {
		out, err := exec.CommandContext(t.Context(), lane, args...).CombinedOutput()
		require.Error(t, err, "%s", out)
		require.Contains(t, string(out), want)
	}
}

// TestTheVMEndsWithTheLane: told to end, or killed.
func TestTheVMEndsWithTheLane(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		temporary := t.TempDir()
		cmd := exec.CommandContext(t.Context(), lane, "disk", "--", sample, "-test.run=^TestHang$")
		cmd.Env = append(os.Environ(), "TMPDIR="+temporary)
		require.NoError(t, cmd.Start())
		vm := child(t, cmd.Process.Pid)
		require.NoError(t, cmd.Process.Signal(s))
		require.Error(t, cmd.Wait())
		awaitEnd(t, vm)
		left, err := os.ReadDir(temporary)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

const patience = 2 * time.Minute

// child waits for the lane's QEMU and gives its pidfd.
func child(t *testing.T, lane int) int {
	t.Helper()
	var fd int
	require.Eventually(t, func() bool {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", lane))
		for _, list := range lists {
			text, _ := os.ReadFile(list)
			for field := range strings.FieldsSeq(string(text)) {
				pid, err := strconv.Atoi(field)
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				if err != nil || !strings.HasPrefix(string(name), "qemu-system") {
					continue
				}
				fd, err = unix.PidfdOpen(pid, 0)
				return err == nil
			}
		}
		return false
	}, patience, 5*time.Millisecond)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func awaitEnd(t *testing.T, pidfd int) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	require.NoError(t, err)
	require.Equal(t, 1, n, "the VM outlives the lane")
}

func TestExitStatusIsTheProgramsOwn(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	cmd := exec.CommandContext(t.Context(), lane, "disk", "--", sample, "-test.run=^TestExit$")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s", out)
}
