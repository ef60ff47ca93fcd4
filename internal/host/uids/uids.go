// Package uids gives every sandbox's runtime a uid (and gid) of its own out of the
// installation's block, and ends what runs under one. A uid is a slot's number above the
// block's base, so the journal that holds the slot holds the uid; nothing else on the host
// runs in the block, which makes "everything under this uid" an exact name for a sandbox's
// processes even when the agent died before it could write one down.
package uids

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Range that blocks are taken from, and the size of one.
const (
	First     = 300_000
	Last      = 1_000_000
	BlockSize = 4097 // slots 1 to 4096, and 0 for probes
)

// Block is an installation's range of uids.
type Block int

// Blocks is how many there are.
const Blocks = (Last - First) / BlockSize

// NewBlock is the n-th block.
func NewBlock(n int) Block { return Block(First + (n%Blocks)*BlockSize) }

// Valid says whether b is one of the blocks.
func (b Block) Valid() bool {
	n := int(b) - First
	return n >= 0 && n%BlockSize == 0 && n/BlockSize < Blocks
}

// UID of a slot.
func (b Block) UID(slot int) int { return int(b) + slot }

// Contains says whether uid is in the block.
func (b Block) Contains(uid int) bool { return uid >= int(b) && uid < int(b)+BlockSize }

// Running lists the uids of the block under which something runs.
func (b Block) Running() (map[int]bool, error) {
	out := map[int]bool{}
	err := each(func(_, uid int) {
		if b.Contains(uid) {
			out[uid] = true
		}
	})
	return out, err
}

// Process is one that runs under a uid of a block.
type Process struct {
	PID, UID int
	// Command is its name, as the kernel has it.
	Command string
}

// Processes lists what runs in the block.
func (b Block) Processes() ([]Process, error) {
	var out []Process
	err := each(func(pid, uid int) {
		if b.Contains(uid) {
			raw, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
			out = append(out, Process{PID: pid, UID: uid, Command: strings.TrimSpace(string(raw))})
		}
	})
	return out, err
}

// Kill ends every process of uid and waits until none is left. Uid 0 is refused silently: it
// means "none was allotted".
func Kill(ctx context.Context, uid int) error {
	if uid == 0 {
		return nil
	}
	for {
		alive := 0
		err := each(func(pid, owner int) {
			if owner == uid {
				alive++
				kill(pid, uid)
			}
		})
		if err != nil || alive == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.DeadlineExceeded, "end processes of", "uid "+strconv.Itoa(uid),
				strconv.Itoa(alive)+" still alive")
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// kill signals pid if it still runs under uid once a pidfd holds it: a pid that was given to
// another process since is not touched. Who started the process reaps it.
func kill(pid, uid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if owner, alive := ownerOf(pid); alive && owner == uid {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// each calls f with every process that still runs.
func each(f func(pid, uid int)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fault.Wrap(err, "list", "processes")
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if owner, alive := ownerOf(pid); alive {
			f(pid, owner)
		}
	}
	return nil
}

// ownerOf looks at a process. /proc/PID belongs to its uid, dumpable or not; the rest is read
// only of those that matter here.
func ownerOf(pid int) (uid int, alive bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	st, err := os.Stat(dir)
	if err != nil {
		return 0, false
	}
	uid = int(st.Sys().(*syscall.Stat_t).Uid)
	return uid, uid < First || !ended(dir)
}

// ended says whether a process is a zombie. One whose first thread has ended looks like one
// while its other threads run on.
func ended(dir string) bool {
	raw, err := os.ReadFile(dir + "/status")
	if err != nil {
		return true
	}
	state, threads := "", ""
	for line := range strings.Lines(string(raw)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "State":
			state = strings.TrimSpace(value)
		case "Threads":
			threads = strings.TrimSpace(value)
		}
	}
	zombie := strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
	return zombie && (threads == "0" || threads == "1")
}
