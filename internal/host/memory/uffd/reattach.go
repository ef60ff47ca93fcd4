package uffd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
)

// VMM identifies the process whose faults are served.
type VMM struct {
	PID       int
	StartTime uint64
}

// Reattach starts another page server for a VM whose last one is gone, with the options that that
// one was started with. The userfaultfd comes from the VMM, which keeps a copy; where its memory is, from
// what the first one wrote down. After an error the VM must be ended, if it is there: its threads
// hang, and none of them has read a wrong byte.
func Reattach(ctx context.Context, o StartOptions, vmm VMM) (*Pager, error) {
	p, err := o.tryReattach(ctx, vmm)
	return p, fault.Wrap(err, "attach pager to VM in", o.Dir)
}

// How often, and how far apart, it is tried to attach a server: a host that is short of memory, for
// which the last one may have been killed, cannot start another at once.
const (
	attachTries = 100
	attachWait  = 100 * time.Millisecond
)

// tryReattach is reattach, until it is plain that it never will be.
func (o StartOptions) tryReattach(ctx context.Context, vmm VMM) (*Pager, error) {
	for try := 1; ; try++ {
		next, err := o.reattach(ctx, vmm)
		if err == nil || hopeless(err) || try == attachTries || vmm.gone() {
			return next, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(attachWait):
		}
	}
}

// hopeless says of an error that it is of what is there, not of the moment.
func hopeless(err error) bool {
	return errors.Is(err, os.ErrNotExist) || fault.Is(err, fault.NotFound) || fault.Is(err, fault.DataLoss) || fault.Is(err, fault.FailedPrecondition) || fault.Is(err, fault.Invalid)
}

func (o StartOptions) reattach(ctx context.Context, vmm VMM) (*Pager, error) {
	in, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	defer in.close()
	if in.state, err = os.OpenFile(o.path(stateName), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	h, err := readHeader(in.state)
	if err != nil {
		return nil, err
	}
	if _, err := h.handshake(o.Bytes); err != nil {
		return nil, err
	}
	if err := in.takeFrom(vmm, o.UID); err != nil {
		return nil, err
	}
	return o.launch(in, true)
}

// takeFrom takes the userfaultfd back from the VMM, and holds the VMM.
func (in *inherited) takeFrom(vmm VMM, uid int) error {
	proc, err := process.Open(vmm.PID, vmm.StartTime)
	if err != nil {
		return err
	}
	defer proc.Release()
	if got, err := proc.UID(); err != nil || got != uid {
		return fault.New(fault.NotFound, "open", fmt.Sprintf("process %d", vmm.PID), fmt.Sprintf("it runs under uid %d, the VM under %d", got, uid))
	}
	fd, err := findUserfault(vmm.PID)
	if err != nil {
		return err
	}
	if in.socket, err = proc.TakeFD(fd); err != nil {
		return err
	}
	if err := checkUserfault(in.socket); err != nil { // the number may mean another file by now
		return err
	}
	pidfd, err := unix.PidfdOpen(vmm.PID, 0)
	if err != nil {
		return fault.Wrap(err, "open", fmt.Sprintf("process %d", vmm.PID))
	}
	in.vmm = os.NewFile(uintptr(pidfd), "pidfd")
	select {
	case <-proc.Done(): // the pid may have been another's when it was opened the second time
		return fault.New(fault.NotFound, "open", fmt.Sprintf("process %d", vmm.PID), "it is gone")
	default:
		return nil
	}
}

// findUserfault is the number of the one userfaultfd that a VMM has.
func findUserfault(pid int) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fault.New(fault.NotFound, "open", fmt.Sprintf("process %d", pid), "it is gone")
	}
	if err != nil {
		return 0, err
	}
	found := -1
	for _, e := range list {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || !strings.HasPrefix(link, linkOfUserfault) {
			continue // closed since
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil || found >= 0 {
			return 0, fault.New(fault.FailedPrecondition, "take userfaultfd of", fmt.Sprintf("process %d", pid), "it has more than one")
		}
		found = fd
	}
	if found < 0 {
		return 0, fault.New(fault.FailedPrecondition, "take userfaultfd of", fmt.Sprintf("process %d", pid), "it has none")
	}
	return found, nil
}
