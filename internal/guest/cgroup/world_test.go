package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/guest/guesttest"
)

// freezers are those of this kernel: signals work everywhere.
func freezers(t *testing.T) map[string]func(*Tree) (freezer, error) {
	t.Helper()
	all := map[string]func(*Tree) (freezer, error){"signals": newSignalFreezer}
	if !guesttest.InGVisor(t) {
		all["kernel"] = func(t *Tree) (freezer, error) { return kernelFreezer{t}, nil }
	}
	return all
}

// eachFreezer runs a test on a tree with each freezer.
func eachFreezer(t *testing.T, test func(w *world)) {
	t.Parallel()
	for name, f := range freezers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(newWorld(t, f))
		})
	}
}

// world is a tree and a file in which its processes tick.
type world struct {
	*testing.T
	tree  *Tree
	ticks string
}

func newWorld(t *testing.T, f func(*Tree) (freezer, error)) *world {
	t.Helper()
	tree, err := open(guesttest.Cgroup(t), f)
	require.NoError(t, err)
	w := &world{T: t, tree: tree, ticks: filepath.Join(t.TempDir(), "ticks")}
	t.Cleanup(func() { require.NoError(t, tree.Close()) })
	return w
}

// start runs a command in a leaf of its own and in a session of its own.
func (w *world) start(cmd *exec.Cmd) *exec.Cmd {
	w.Helper()
	leaf, err := w.tree.NewLeaf()
	require.NoError(w, err)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, leaf.FD()
	cmd.Env = append(os.Environ(), append(cmd.Env, "TICKS="+w.ticks)...)
	require.NoError(w, cmd.Start())
	leaf.Started()
	w.Cleanup(func() {
		_ = leaf.Kill()
		_ = cmd.Wait()
		leaf.Remove()
	})
	return cmd
}

func (w *world) shell(script string) *exec.Cmd {
	w.Helper()
	return w.start(exec.Command("/bin/bash", "-c", script))
}

func (w *world) program(name string) *exec.Cmd {
	w.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{program + "=" + name}
	return w.start(cmd)
}

func (w *world) freeze() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), guesttest.Patience)
	defer cancel()
	require.NoError(w, w.tree.Freeze(ctx))
}

func (w *world) thaw() {
	w.Helper()
	require.NoError(w, w.tree.Thaw())
}

func (w *world) ticked() int64 {
	info, err := os.Stat(w.ticks)
	if err != nil {
		return 0
	}
	return info.Size()
}

// waitTick waits until something ticked after the ticks that there were.
func (w *world) waitTick(before int64) {
	w.Helper()
	w.wait("a tick", func() bool { return w.ticked() > before })
}

func (w *world) wait(what string, done func() bool) {
	w.Helper()
	for end := time.Now().Add(guesttest.Patience); !done(); time.Sleep(time.Millisecond) {
		require.True(w, time.Now().Before(end), "no %s", what)
	}
}

// state is the letter of /proc/PID/stat.
func state(pid int) string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')'):]), " ")
	return rest[:1]
}
