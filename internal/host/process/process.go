package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Status is how a process ended.
type Status struct {
	// Known: the kernel told the exit status. That of a process which is not our child is told
	// while it is a zombie, and from Linux 6.15 on.
	Known  bool
	Code   int
	Signal unix.Signal
	At     time.Time
}

// String says it for people.
func (s Status) String() string {
	switch {
	case !s.Known:
		return "ended, exit status unknown"
	case s.Signal != 0:
		return fmt.Sprintf("killed by signal %d", int(s.Signal))
	default:
		return fmt.Sprintf("exit status %d", s.Code)
	}
}

// Process is one process.
type Process struct {
	PID int
	// StartTime in clock ticks since boot.
	StartTime uint64

	pidfd  *os.File
	done   chan struct{}
	once   sync.Once
	status Status
}

// Open takes a process that is not our child. It is fault.NotFound when the process is gone or
// the pid belongs to another one by now. startTime 0 takes whoever has the pid, a zombie too.
func Open(pid int, startTime uint64) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, gone(pid)
	}
	if err != nil {
		return nil, fault.Wrap(err, "open", fmt.Sprintf("process %d", pid))
	}
	p, err := take(pid, fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if startTime != 0 && (p.StartTime != startTime || readable(fd)) {
		_ = p.pidfd.Close()
		return nil, gone(pid)
	}
	p.watch()
	return p, nil
}

func gone(pid int) error {
	return fault.New(fault.NotFound, "open", fmt.Sprintf("process %d", pid), "it is gone")
}

// take makes a Process of a pidfd; a child may have ended already. The stat file is read after the pidfd was opened, so a
// matching start time proves that both mean the same process.
func take(pid, pidfd int) (*Process, error) {
	st, err := readStat(pid)
	if err != nil {
		return nil, gone(pid)
	}
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return nil, fault.Wrap(err, "open", fmt.Sprintf("pidfd of %d", pid))
	}
	unix.CloseOnExec(pidfd)
	return &Process{
		PID:       pid,
		StartTime: st.startTime,
		pidfd:     os.NewFile(uintptr(pidfd), "pidfd"),
		done:      make(chan struct{}),
	}, nil
}

// Done is closed when the process has ended and, if it is a child, was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is valid after Done.
func (p *Process) Status() Status {
	<-p.done
	return p.status
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill(ctx context.Context) error {
	err := p.control(func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	if err != nil && !errors.Is(err, unix.ESRCH) && !p.ended() {
		return fault.Wrap(err, "kill", fmt.Sprintf("process %d", p.PID))
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "wait for", fmt.Sprintf("process %d", p.PID))
	}
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// TakeFD duplicates a descriptor of the process.
func (p *Process) TakeFD(fd int) (*os.File, error) {
	var got int
	err := p.control(func(pidfd int) (err error) {
		got, err = unix.PidfdGetfd(pidfd, fd, 0)
		return err
	})
	if err != nil {
		return nil, fault.Wrap(err, "take", fmt.Sprintf("descriptor %d of process %d", fd, p.PID))
	}
	unix.CloseOnExec(got)
	return os.NewFile(uintptr(got), fmt.Sprintf("fd %d of %d", fd, p.PID)), nil
}

// Release lets go of the process; it lives on.
func (p *Process) Release() { p.once.Do(func() { _ = p.pidfd.Close() }) }

func (p *Process) control(f func(fd int) error) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
