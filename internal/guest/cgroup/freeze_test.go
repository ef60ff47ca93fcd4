package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// counting shells count lines; each line is one more than the last.
const counting = `i=0; while :; do i=$((i+1)); echo $i >> $TICKS; done`

func TestHundredFreezesLoseNoTick(t *testing.T) {
	eachFreezer(t, func(w *world) {
		w.shell(counting)
		w.program("threads")
		for range 5 {
			w.shell("while :; do /bin/true | cat; (: ) & wait; done")
		}
		w.waitTick(0)
		for range 100 {
			w.freeze()
			stopped := w.ticked()
			w.requireStill(stopped)
			w.thaw()
			w.waitTick(stopped)
		}
		w.requireCounted()
	})
}

// requireStill looks at every process, in which time one that runs would tick.
func (w *world) requireStill(stopped int64) {
	w.Helper()
	for range 3 {
		w.tree.Processes()
	}
	require.Equal(w, stopped, w.ticked(), "a tick of the frozen")
}

// requireCounted: the counting shell neither lost a line nor wrote one twice.
func (w *world) requireCounted() {
	w.Helper()
	w.freeze() // so that no line is half written
	defer w.thaw()
	raw, err := os.ReadFile(w.ticks)
	require.NoError(w, err)
	want := 0
	for line := range strings.FieldsSeq(string(raw)) {
		if line != "t" {
			want++
			require.Equal(w, strconv.Itoa(want), line)
		}
	}
	require.Positive(w, want)
}

func TestFreezeOfAnEmptyTree(t *testing.T) {
	eachFreezer(t, func(w *world) {
		for range 3 {
			w.freeze()
			w.freeze()
			w.thaw()
			w.thaw()
		}
	})
}

func TestFreezeReachesProgramsOfEachKind(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"threads", "vfork", "forkbomb", "hop"} {
		t.Run(kind, func(t *testing.T) {
			eachFreezer(t, func(w *world) {
				w.program(kind)
				w.waitTick(0)
				for range 10 {
					w.freeze()
					stopped := w.ticked()
					w.requireStill(stopped)
					w.thaw()
					w.waitTick(stopped)
				}
			})
		})
	}
}

func TestStoppedByTheUserStaysStopped(t *testing.T) {
	eachFreezer(t, func(w *world) {
		stopped := w.shell(counting)
		w.waitTick(0)
		require.NoError(w, stopped.Process.Signal(unix.SIGSTOP))
		w.wait("stop", func() bool { return state(stopped.Process.Pid) == "T" })
		for range 3 {
			w.freeze()
			w.thaw()
			require.Equal(w, "T", state(stopped.Process.Pid))
		}
		ticks := w.ticked()
		require.NoError(w, stopped.Process.Signal(unix.SIGCONT))
		w.waitTick(ticks)
	})
}

// What dies while it is frozen is not there for the thaw, and holds nobody up.
func TestDeathWhileFrozen(t *testing.T) {
	eachFreezer(t, func(w *world) {
		dies := w.shell("sleep 1000 & wait")
		w.shell(counting)
		w.waitTick(0)
		w.freeze()
		require.NoError(w, dies.Process.Kill())
		w.wait("end", func() bool { return strings.Contains("ZX", state(dies.Process.Pid)) })
		w.freeze()
		stopped := w.ticked()
		w.thaw()
		w.waitTick(stopped)
	})
}

// A later process of the same number is not continued.
func TestThawKnowsAProcessByItsStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, newSignalFreezer)
	other := w.shell("kill -STOP $$; " + counting)
	pid := other.Process.Pid
	w.wait("stop", func() bool { return state(pid) == "T" })
	f := w.tree.freezer.(*signalFreezer)
	f.stopped = []process{{pid: pid, start: "earlier"}}
	w.thaw()
	require.Equal(w, "T", state(pid))
	require.Empty(w, f.stopped)
	now, ok := f.look(pid)
	require.True(w, ok)
	f.stopped = []process{now}
	w.thaw()
	w.waitTick(0)
}

// A freeze that is given up, before it began or because a process does not stop in time: all go
// on.
func TestFailedFreezeLetsAllGoOn(t *testing.T) {
	t.Parallel()
	for name, f := range freezers(t) {
		t.Run("cancelled/"+name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, f)
			w.shell(counting)
			w.waitTick(0)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(w, w.tree.Freeze(ctx), context.Canceled)
			w.requireGoesOn()
		})
	}
	t.Run("does not stop", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, newSignalFreezer)
		w.shell(counting)
		w.waitTick(0)
		w.tree.freezer.(*signalFreezer).kill = deafTo(w.shell(counting).Process.Pid)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		require.ErrorIs(w, w.tree.Freeze(ctx), context.DeadlineExceeded)
		w.requireGoesOn()
	})
}

// deafTo signals all but one process, as if that one waited in the kernel, not to be disturbed.
func deafTo(pid int) func(int, unix.Signal) error {
	return func(to int, sig unix.Signal) error {
		if to == pid {
			return nil
		}
		return unix.Kill(to, sig)
	}
}

func (w *world) requireGoesOn() {
	w.Helper()
	w.waitTick(w.ticked())
	for _, pid := range w.tree.pids() {
		require.NotEqual(w, "T", state(pid))
	}
	leave, err := w.tree.Enter(w.Context())
	require.NoError(w, err, "the gate is open")
	leave()
}

// gated: a freeze in the middle of a start would stop the child before its exec.
func TestFreezeWaitsForStartsUnderWay(t *testing.T) {
	eachFreezer(t, func(w *world) {
		leave, err := w.tree.Enter(w.Context())
		require.NoError(w, err)
		ctx, cancel := context.WithCancel(w.Context())
		frozen := make(chan error, 1)
		go func() { frozen <- w.tree.Freeze(ctx) }()
		cancel()
		require.ErrorIs(w, <-frozen, context.Canceled)
		go func() { frozen <- w.tree.Freeze(w.Context()) }()
		leave()
		require.NoError(w, <-frozen)
		w.thaw()
	})
}

func TestKillWorksOnTheFrozen(t *testing.T) {
	eachFreezer(t, func(w *world) {
		leaf, err := w.tree.NewLeaf()
		require.NoError(w, err)
		cmd := exec.Command("/bin/bash", "-c", "sleep 1000 & sleep 1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: leaf.FD()}
		require.NoError(w, cmd.Start())
		leaf.Started()
		w.wait("child", func() bool { return w.tree.Processes() == 3 })
		w.freeze()
		require.NoError(w, leaf.Kill())
		var ended *exec.ExitError
		require.True(w, errors.As(cmd.Wait(), &ended))
		w.wait("end", func() bool { return w.tree.Processes() == 0 })
		leaf.Remove()
		w.thaw()
	})
}
