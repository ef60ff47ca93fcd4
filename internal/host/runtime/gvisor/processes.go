package gvisor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
)

// end ends everything of a sandbox. Commands go first: one under way would start new processes
// under the uid. What a command has forked and not yet moved to the uid has the command's own
// arguments, and so is found with it.
func end(ctx context.Context, spec runtime.Spec) error {
	if err := endCommands(ctx, spec.RunDir, func(int) bool { return true }); err != nil {
		return err
	}
	return uids.Kill(ctx, spec.UID)
}

// endCommands kills the processes that carry a sandbox's --root, of the owners that are meant,
// and waits until none is left.
func endCommands(ctx context.Context, runDir string, meant func(uid int) bool) error {
	mark := []byte(rootFlag(runDir))
	for {
		alive := 0
		err := eachProcess(func(pid int) {
			if carries(pid, mark) && meant(owner(pid)) {
				alive++
				killIf(pid, mark)
			}
		})
		if err != nil || alive == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.DeadlineExceeded, "end runsc commands of", runDir, strconv.Itoa(alive)+" still alive")
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func eachProcess(f func(pid int)) error {
	dir, err := os.Open("/proc")
	if err != nil {
		return fault.Wrap(err, "list", "processes")
	}
	names, err := dir.Readdirnames(-1)
	if err = errors.Join(err, dir.Close()); err != nil {
		return fault.Wrap(err, "list", "processes")
	}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() {
			f(pid)
		}
	}
	return nil
}

// carries says whether mark is one of a process's arguments; a zombie has none.
func carries(pid int, mark []byte) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return false
	}
	for arg := range bytes.SplitSeq(raw, []byte{0}) {
		if bytes.Equal(arg, mark) {
			return true
		}
	}
	return false
}

// killIf signals pid if it is still such a process once a pidfd holds it.
func killIf(pid int, mark []byte) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if carries(pid, mark) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

func owner(pid int) int {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid), &st) != nil {
		return -1
	}
	return int(st.Uid)
}
